/* Flows that wait for a server below its maxconn: first come, first served, within a worker.
 *
 * A completion may free a place for a flow of another worker: the bits in service->waiters say who has flows waiting, and
 * their eventfd wakes them. Between the look and the award another worker may be quicker, so a cap may be overshot by
 * workers - 1 flows, never more.
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
}

void queue_wake(struct worker_state *w)
{
    while (w->queue_first) {
        struct session *s = w->queue_first;
        request_dispatch(s);
        if (w->queue_first == s)            /* still full */
            return;
    }
    uint64_t others = atomic_load(&w->service->waiters) & ~(1ULL << w->index);
    if (others) {                           /* the next one after us, so that each has its turn */
        uint64_t after = w->index < 63 ? others & ~((2ULL << w->index) - 1) : 0;
        int other = __builtin_ctzll(after ? after : others);
        uint64_t one = 1;
        if (write(w->service->wake_fds[other], &one, sizeof one) != sizeof one)
            return;                         /* its counter is full: it is awake */
    }
}
