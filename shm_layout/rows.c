/* Reads what the workers write - words, totals, stats, reservoirs, flow records - and keeps the controller's signs of life.
 *
 * Counters are copied word by word, each whole, not all of one instant. A reservoir and a flow record are copied under their
 * own sequence, so that each is consistent in itself.
 */
#include "access.h"
#include "layout.h"
#include "words.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#define TRIES 64

static int range_is_valid(const struct segment_header *h, uint32_t worker, uint32_t first, uint32_t n)
{
    return worker < h->max_workers && first <= h->max_servers && n <= h->max_servers - first;
}

int segment_read_stats(const void *base, uint32_t worker, uint32_t first, uint32_t n, struct server_stats *out)
{
    struct segment_header h;
    int error = layout_load(base, &h);
    if (error != 0)
        return error;
    if (!range_is_valid(&h, worker, first, n))
        return -EINVAL;
    words_acquire(out, layout_at_const(base, segment_stats_offset(&h, worker, first)), n * (uint64_t)sizeof *out);
    return 0;
}

int segment_read_words(const void *base, uint32_t first, uint32_t n, uint64_t *out)
{
    struct segment_header h;
    int error = layout_load(base, &h);
    if (error != 0)
        return error;
    if (!range_is_valid(&h, 0, first, n))
        return -EINVAL;
    const struct server_word *words = layout_at_const(base, segment_word_offset(&h, first));
    for (uint32_t i = 0; i < n; i++)
        out[i] = word_acquire(&words[i].word);
    return 0;
}

int segment_read_worker(const void *base, uint32_t worker, struct worker *out)
{
    struct segment_header h;
    int error = layout_load(base, &h);
    if (error != 0)
        return error;
    if (worker >= h.max_workers)
        return -EINVAL;
    words_acquire(out, layout_at_const(base, segment_worker_offset(&h, worker)), sizeof *out);
    return 0;
}

int segment_read_controller(const void *base, struct controller *out)
{
    struct segment_header h;
    int error = layout_load(base, &h);
    if (error != 0)
        return error;
    words_acquire(out, layout_at_const(base, h.off_controller), sizeof *out);
    return 0;
}

/* One consistent copy; 0 when 64 tries failed: its writer was killed inside, or is paused there. */
static int reservoir_copy(const struct reservoir *r, uint32_t slots, struct sample *out, uint64_t *count, uint64_t *id)
{
    for (int try = 0; try < TRIES; try++) {
        uint64_t before = word_acquire(&r->sequence); /* pairs with the writer's release of the even number */
        if (before % 2u == 0) {
            *count = word_acquire(&r->count);
            *id = word_acquire(&r->id);
            words_acquire(out, r + 1, slots * sizeof *out);
            if (word_load(&r->sequence) == before)
                return 1;
        }
        if (try >= TRIES / 2)
            sched_yield(); /* the writer may be waiting for this very core */
    }
    return 0;
}

int segment_read_reservoirs(const void *base, uint32_t worker, uint32_t metric, uint32_t first, uint32_t n, struct sample *out,
                            uint64_t *counts, uint64_t *ids)
{
    struct segment_header h;
    int failed = 0, error = layout_load(base, &h);
    if (error != 0)
        return error;
    if (!range_is_valid(&h, worker, first, n) || metric >= METRICS)
        return -EINVAL;
    for (uint32_t i = 0; i < n; i++) {
        const void *reservoir = layout_at_const(base, segment_reservoir_offset(&h, worker, first + i, metric));
        struct sample *samples = out + (uint64_t)i * h.reservoir_slots;
        if (!reservoir_copy(reservoir, h.reservoir_slots, samples, counts + i, ids + i)) {
            memset(samples, 0, h.reservoir_slots * sizeof *samples);
            counts[i] = ids[i] = 0;
            failed++;
        }
    }
    return failed;
}

int segment_read_records(const void *base, uint32_t worker, uint64_t *cursor, struct flow_record *out, uint32_t room,
                         uint64_t *lost)
{
    struct segment_header h;
    int error = layout_load(base, &h);
    if (error != 0)
        return error;
    if (worker >= h.max_workers || room > INT32_MAX)
        return -EINVAL;
    const struct flow_record *ring = layout_at_const(base, segment_ring_offset(&h, worker));
    const struct worker *w = layout_at_const(base, segment_worker_offset(&h, worker));
    uint64_t head = word_acquire(&w->ring_head), next = *cursor;
    if (next > head)
        next = head > h.ring_slots ? head - h.ring_slots : 0; /* the worker came back and counts from the start */
    if (head - next > h.ring_slots) {
        *lost += head - h.ring_slots - next;
        next = head - h.ring_slots;
    }
    uint32_t got = 0;
    for (; next < head && got < room; next++) {
        const struct flow_record *record = ring + (next & (h.ring_slots - 1u));
        uint64_t wanted = next + 1u;
        if (word_acquire(&record->sequence) == wanted) { /* pairs with the writer's last release */
            words_acquire(out + got, record, sizeof *out);
            if (word_load(&record->sequence) == wanted) {
                got++;
                continue;
            }
        }
        *lost += 1;
    }
    *cursor = next;
    return (int)got;
}

uint64_t segment_controller_begin(void *base, uint64_t pid, uint64_t now_ns)
{
    struct segment_header h;
    if (layout_load(base, &h) != 0)
        return 0;
    struct controller *c = layout_at(base, h.off_controller);
    uint64_t epoch = word_load(&c->epoch) + 1u;
    word_store(&c->pid, pid);
    word_store(&c->heartbeat_ns, now_ns);
    word_store(&c->cycles, 0);
    word_store(&c->cycle_last_ns, 0);
    word_store(&c->cycle_max_ns, 0);
    word_store(&c->late, 0);
    word_store(&c->failed, 0);
    word_release(&c->epoch, epoch); /* who sees the epoch sees whose it is */
    return epoch;
}

void segment_controller_beat(void *base, uint64_t now_ns, uint64_t cycle_ns, uint64_t late, uint64_t failed)
{
    struct segment_header h;
    if (layout_load(base, &h) != 0)
        return;
    struct controller *c = layout_at(base, h.off_controller);
    word_store(&c->cycle_last_ns, cycle_ns);
    if (cycle_ns > word_load(&c->cycle_max_ns))
        word_store(&c->cycle_max_ns, cycle_ns);
    word_store(&c->late, late);
    word_store(&c->failed, failed);
    word_store(&c->cycles, word_load(&c->cycles) + 1u);
    word_release(&c->heartbeat_ns, now_ns);
}
