/* A simulated server: FIFO with k workers or processor sharing on k cores, and the link to it. See server.h for the idea. */
#include "server.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int server_init(struct server *s, const struct sim_server *config)
{
    memset(s, 0, sizeof *s);
    s->id = config->id;
    s->workers = config->workers;
    s->service = config->service;
    s->speed = config->speed;
    s->rate = config->speed;
    s->delay_ns = config->delay_ns;
    s->limit = config->backlog < UINT32_MAX - config->workers ? config->workers + config->backlog : UINT32_MAX;
    s->alive = true;
    s->present = config->state != SERVER_FREE;
    s->room = config->service == SIM_FIFO && config->workers < 64 ? config->workers : 64;
    s->marks = malloc(s->room * sizeof *s->marks);
    return s->marks != NULL ? 0 : -ENOMEM;
}

void server_free(struct server *s)
{
    free(s->marks);
}

/* Processor sharing divides the cores among the flows; a FIFO worker serves its one flow at full speed. */
static void set_rate(struct server *s)
{
    if (s->service == SIM_SHARING && s->in_server > s->workers)
        s->rate = s->speed * s->workers / s->in_server;
    else
        s->rate = s->speed;
}

/* There is room. Equal marks keep no order of their own, but always the same. */
static void push(struct server *s, struct job *j)
{
    double v = s->v + j->work_ns;
    uint32_t i = s->running++;
    while (i > 0) {
        uint32_t up = (i - 1) / 4;
        if (s->marks[up].v <= v)
            break;
        s->marks[i] = s->marks[up];
        i = up;
    }
    s->marks[i] = (struct mark){ .v = v, .job = j };
}

static struct job *pop(struct server *s)
{
    struct mark *m = s->marks;
    struct job *first = m[0].job;
    uint32_t n = --s->running, i = 0;
    struct mark last = m[n];
    for (;;) {
        uint32_t child = 4 * i + 1, end = child + 4 < n ? child + 4 : n;
        if (child >= n)
            break;
        for (uint32_t k = child + 1; k < end; k++) {
            if (m[k].v < m[child].v)
                child = k;
        }
        if (m[child].v >= last.v)
            break;
        m[i] = m[child];
        i = child;
    }
    m[i] = last;
    return first;
}

static int grow(struct server *s)
{
    struct mark *more = realloc(s->marks, 2 * (size_t)s->room * sizeof *more);
    if (more == NULL)
        return -1;
    s->marks = more;
    s->room *= 2;
    return 0;
}

int server_enter(struct server *s, struct job *j, uint64_t now_ns)
{
    if (!s->alive) {
        s->refused++;
        return OUTCOME_CONNECT_FAILED;
    }
    if (s->in_server >= s->limit) {
        s->overflowed++;
        return OUTCOME_SERVER_5XX;
    }
    bool serve = s->service == SIM_SHARING || s->running < s->workers;
    if (serve && s->running == s->room && grow(s) != 0)
        return -1;
    server_advance(s, now_ns);
    if (s->in_server++ == 0)
        s->v = 0; /* nothing refers to it now: it keeps its digits over long runs */
    if (serve) {
        push(s, j);
        set_rate(s);
    } else {
        job_append(&s->queue, j);
    }
    return 0;
}

struct job *server_complete(struct server *s, uint64_t now_ns)
{
    server_advance(s, now_ns);
    struct job *done = pop(s);
    s->in_server--;
    s->completed++;
    if (s->queue.head != NULL)
        push(s, job_pop(&s->queue));
    else
        set_rate(s);
    return done;
}

struct job_list server_crash(struct server *s, uint64_t now_ns)
{
    struct job_list all = { NULL, NULL };
    server_advance(s, now_ns);
    s->lost += s->in_server;
    for (uint32_t i = 0; i < s->running; i++)
        job_append(&all, s->marks[i].job);
    while (s->queue.head != NULL)
        job_append(&all, job_pop(&s->queue));
    s->running = s->in_server = 0;
    s->alive = false;
    set_rate(s);
    return all;
}

void server_set_speed(struct server *s, uint64_t now_ns, double speed)
{
    server_advance(s, now_ns);
    s->speed = speed;
    set_rate(s);
}
