/* References on given arrivals and sizes: what no proxy can do, to measure proxies by.
 *
 * None of them is simulated by events: with first come, first served each flow's completion follows from those before it.
 */
#include "sim.h"
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

/* A binary heap of (key, item), least key first. */
struct entry {
    double key;
    uint64_t item;
};

static void heap_push(struct entry *heap, uint64_t *n, double key, uint64_t item)
{
    uint64_t i = (*n)++;
    while (i > 0 && heap[(i - 1) / 2].key > key) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = (struct entry){ .key = key, .item = item };
}

static struct entry heap_pop(struct entry *heap, uint64_t *n)
{
    struct entry first = heap[0], last = heap[--*n];
    uint64_t i = 0;
    for (uint64_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && heap[child + 1].key < heap[child].key)
            child++;
        if (heap[child].key >= last.key)
            break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return first;
}

static bool flows_valid(const uint64_t *arrivals_ns, const double *works_ns, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        if (!(works_ns[i] >= 0) || !isfinite(works_ns[i]) || (i > 0 && arrivals_ns[i] < arrivals_ns[i - 1]))
            return false;
    }
    return true;
}

/* How many workers there are in all; 0: a server is not valid. */
static uint64_t count_workers(const double *speeds, const uint32_t *workers, uint32_t n_servers)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < n_servers; i++) {
        if (!(speeds[i] > 0) || !isfinite(speeds[i]) || workers[i] < 1)
            return 0;
        total += workers[i];
    }
    return total;
}

int sim_central_queue(const uint64_t *arrivals_ns, const double *works_ns, uint64_t n, const double *speeds,
                      const uint32_t *workers, uint32_t n_servers, double *fct_ns)
{
    uint64_t total = count_workers(speeds, workers, n_servers);
    if (total == 0 || !flows_valid(arrivals_ns, works_ns, n))
        return -EINVAL;
    struct entry *busy = malloc(2 * total * sizeof *busy), *idle = busy + total;
    if (busy == NULL)
        return -ENOMEM;
    uint64_t n_busy = 0, n_idle = 0;
    for (uint32_t s = 0; s < n_servers; s++) {
        for (uint32_t w = 0; w < workers[s]; w++)
            heap_push(idle, &n_idle, -speeds[s], s);
    }
    /* In order of arrival: a flow takes the fastest idle worker, or, when there is none, the first to come free. */
    for (uint64_t i = 0; i < n; i++) {
        double begin = (double)arrivals_ns[i];
        while (n_busy > 0 && busy[0].key <= begin) {
            struct entry e = heap_pop(busy, &n_busy);
            heap_push(idle, &n_idle, -speeds[e.item], e.item);
        }
        uint64_t server;
        if (n_idle > 0) {
            server = heap_pop(idle, &n_idle).item;
        } else {
            struct entry e = heap_pop(busy, &n_busy);
            begin = e.key;
            server = e.item;
        }
        double end = begin + works_ns[i] / speeds[server];
        heap_push(busy, &n_busy, end, server);
        fct_ns[i] = end - (double)arrivals_ns[i];
    }
    free(busy);
    return 0;
}

int sim_least_work_left(const uint64_t *arrivals_ns, const double *works_ns, uint64_t n, const double *speeds,
                        const uint32_t *workers, uint32_t n_servers, double *fct_ns)
{
    uint64_t total = count_workers(speeds, workers, n_servers);
    if (total == 0 || !flows_valid(arrivals_ns, works_ns, n))
        return -EINVAL;
    struct entry *heaps = malloc(total * sizeof *heaps), **of = malloc(n_servers * sizeof *of);
    if (heaps == NULL || of == NULL) {
        free(heaps);
        free(of);
        return -ENOMEM;
    }
    for (uint32_t s = 0; s < n_servers; s++) {
        of[s] = s == 0 ? heaps : of[s - 1] + workers[s - 1];
        for (uint32_t w = 0; w < workers[s]; w++)
            of[s][w] = (struct entry){ .key = 0 }; /* equal keys are a heap; when each worker is free */
    }
    for (uint64_t i = 0; i < n; i++) {
        double now = (double)arrivals_ns[i], best = INFINITY;
        uint32_t server = 0;
        for (uint32_t s = 0; s < n_servers; s++) {
            double end = fmax(now, of[s][0].key) + works_ns[i] / speeds[s];
            if (end < best) {
                best = end;
                server = s;
            }
        }
        uint64_t size = workers[server];
        heap_pop(of[server], &size);
        heap_push(of[server], &size, best, 0);
        fct_ns[i] = best - now;
    }
    free(heaps);
    free(of);
    return 0;
}

int sim_pooled_srpt(const uint64_t *arrivals_ns, const double *works_ns, uint64_t n, double speed, double *fct_ns)
{
    if (!(speed > 0) || !isfinite(speed) || !flows_valid(arrivals_ns, works_ns, n))
        return -EINVAL;
    struct entry *left = malloc((n > 0 ? n : 1) * sizeof *left);
    if (left == NULL)
        return -ENOMEM;
    uint64_t n_left = 0, next = 0;
    double now = 0;
    while (next < n || n_left > 0) {
        double arrival = next < n ? (double)arrivals_ns[next] : INFINITY;
        if (n_left > 0 && now + left[0].key / speed <= arrival) {
            struct entry e = heap_pop(left, &n_left);
            now += e.key / speed;
            fct_ns[e.item] = now - (double)arrivals_ns[e.item];
            continue;
        }
        /* The one in service stays the least: what it lost keeps it at the top. */
        if (n_left > 0)
            left[0].key -= (arrival - now) * speed;
        now = arrival;
        heap_push(left, &n_left, works_ns[next], next);
        next++;
    }
    free(left);
    return 0;
}
