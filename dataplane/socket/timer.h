/* Timeouts: one queue per kind. All timers of a kind last equally long, so a queue is in order of expiry by itself and
 * setting, moving and clearing one are a few pointer writes.
 */
#ifndef VICKREY_TIMER_H
#define VICKREY_TIMER_H

#include <stdint.h>

enum timer_kind {
    TIMER_REQUEST,          /* http-request: a whole head */
    TIMER_KEEP_ALIVE,       /* http-keep-alive: between requests */
    TIMER_CLIENT,           /* the client sends or reads nothing */
    TIMER_CONNECT,
    TIMER_SERVER,           /* the server sends nothing */
    TIMER_QUEUE,
    TIMER_TUNNEL,
    TIMER_IDLE_UP,          /* a pooled server connection */
    TIMER_LINGER,           /* a closed client connection is read empty */
    TIMER_ABORT_PROBE,      /* the client's sending side is closed: is it still there? */
    TIMER_LOOK,             /* the answer takes its time: is a client that will send nothing more still there? */
    TIMER_KINDS
};

struct timer {
    struct timer *next, *prev;      /* NULL: not set */
    uint64_t      deadline_ns;
    uint32_t      kind;
};

struct timers {
    struct timer heads[TIMER_KINDS];
};

static inline void timers_init(struct timers *ts)
{
    for (int i = 0; i < TIMER_KINDS; i++)
        ts->heads[i].next = ts->heads[i].prev = &ts->heads[i];
}

static inline void timer_clear(struct timer *t)
{
    if (t->next) {
        t->next->prev = t->prev;
        t->prev->next = t->next;
        t->next = t->prev = NULL;
    }
}

/* deadline_ns is the latest of its queue, see timers_shorten(), but for a machine that stood still in the middle of a round. */
static inline void timer_set(struct timers *ts, struct timer *t, enum timer_kind kind, uint64_t deadline_ns)
{
    timer_clear(t);
    struct timer *head = &ts->heads[kind], *at = head->prev;
    for (int looked = 0; at != head && at->deadline_ns > deadline_ns && looked < 64; looked++)
        at = at->prev;
    t->kind = kind;
    t->deadline_ns = deadline_ns;
    t->prev = at;
    t->next = at->next;
    at->next->prev = t;
    at->next = t;
}

/* The kind lasts shorter from now on: none of it is later than deadline_ns. */
static inline void timers_shorten(struct timers *ts, enum timer_kind kind, uint64_t deadline_ns)
{
    struct timer *head = &ts->heads[kind];
    for (struct timer *t = head->prev; t != head && t->deadline_ns > deadline_ns; t = t->prev)
        t->deadline_ns = deadline_ns;
}

/* The first timer that is due, cleared; NULL: none. */
static inline struct timer *timers_due(struct timers *ts, uint64_t now_ns)
{
    for (int i = 0; i < TIMER_KINDS; i++) {
        struct timer *t = ts->heads[i].next;
        if (t != &ts->heads[i] && t->deadline_ns <= now_ns) {
            timer_clear(t);
            return t;
        }
    }
    return NULL;
}

/* The earliest deadline, or UINT64_MAX. */
static inline uint64_t timers_next(const struct timers *ts)
{
    uint64_t next = UINT64_MAX;
    for (int i = 0; i < TIMER_KINDS; i++) {
        const struct timer *t = ts->heads[i].next;
        if (t != &ts->heads[i] && t->deadline_ns < next)
            next = t->deadline_ns;
    }
    return next;
}

#endif
