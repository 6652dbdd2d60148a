/* Flows that wait for a server below its maxconn: first come, first served.
 *
 * Each worker has a queue of its own; service->waiters and waiting_since_ns tell the others who has waited longest. A worker that
 * sees a place become free gives it to its own first flow only when nobody else's has waited longer, and wakes that worker
 * otherwise (its eventfd). While anybody waits, new flows queue too: no worker lives on the places that its own flows leave.
 * Between the look and the award another worker may be quicker, so a cap may be overshot by workers - 1 flows, never more.
 */
#include "proxy.h"

#include <unistd.h>

void queue_add(struct session *s)
{
    struct worker_state *w = s->worker;
    uint32_t limit = (w->settings->queue_slots + w->service->workers - 1) / w->service->workers;
    if (w->queue_n >= limit) {
        session_answer(s, 503, 'Q', OUTCOME_CLIENT_TIMEOUT);
        return;
    }
    s->state = SESSION_QUEUED;
    s->queued_ns = w->now_ns;
    s->queue_next = NULL;
    s->queue_prev = w->queue_last;
    *(w->queue_last ? &w->queue_last->queue_next : &w->queue_first) = s;
    w->queue_last = s;
    w->queue_n++;
    COUNT(w, queued, 1);
    COUNT(w, queue_total, 1);
    arm_timer(w, &s->timer, TIMER_QUEUE, w->settings->timeout_queue_ns);
    if (w->queue_n == 1) {
        atomic_store(&w->service->waiting_since_ns[w->index], s->queued_ns);
        atomic_fetch_or(&w->service->waiters, 1ULL << w->index);
        w->freed = true;                    /* one may have completed between the auction and the bit: look again */
    }
}

void queue_remove(struct session *s)
{
    struct worker_state *w = s->worker;
    *(s->queue_prev ? &s->queue_prev->queue_next : &w->queue_first) = s->queue_next;
    *(s->queue_next ? &s->queue_next->queue_prev : &w->queue_last) = s->queue_prev;
    w->queue_n--;
    s->state = SESSION_CONNECTING;
    timer_clear(&s->timer);
    COUNT(w, queued, -1);
    COUNT(w, queue_wait_sum_ns, w->now_ns - s->queued_ns);
    if (w->queue_n == 0)
        atomic_fetch_and(&w->service->waiters, ~(1ULL << w->index));
    else
        atomic_store(&w->service->waiting_since_ns[w->index], w->queue_first->queued_ns);
}

/* The worker whose first flow has waited longest, this one when nobody waits longer. */
static uint32_t longest_waiting(const struct worker_state *w)
{
    uint32_t longest = w->index;
    uint64_t since = w->queue_first ? w->queue_first->queued_ns : UINT64_MAX;
    uint64_t others = atomic_load(&w->service->waiters) & ~(1ULL << w->index);
    for (; others; others &= others - 1) {
        uint32_t other = (uint32_t)__builtin_ctzll(others);
        uint64_t its = atomic_load(&w->service->waiting_since_ns[other]);
        if (its < since) {
            since = its;
            longest = other;
        }
    }
    return longest;
}

void queue_wake(struct worker_state *w)
{
    uint32_t longest;
    while ((longest = longest_waiting(w)) == w->index) {
        struct session *s = w->queue_first;
        if (!s)
            return;
        request_dispatch(s);
        if (w->queue_first == s)            /* still full */
            return;
    }
    uint64_t one = 1;
    if (write(w->service->wake_fds[longest], &one, sizeof one) != sizeof one)
        return;                             /* its counter is full: it is awake */
}
