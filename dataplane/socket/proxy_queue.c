/* Flows that wait for a server: because all are at their maxconn, or because the reserve holds them for a cheaper one.
 *
 * Order: gold, then silver, then bronze; within a class who came first. So that nobody starves, every eighth place goes to whoever
 * has waited longest, whatever the class, once that is more than half of `timeout queue`.
 *
 * The reserve holds a flow for half of `timeout queue` at most, and only while there is a free slot to wait in: a server could
 * have taken it, so it is never answered 503 for the reserve's sake. Then, and without a reserve, it waits for room alone.
 *
 * Each worker has a queue of its own; service->lines tell the others who is first in each. A worker that sees a place become free
 * looks for the first of all: its own it dispatches, for another's it wakes that worker (its eventfd). A hop costs time in which
 * the server has nothing to do, so a flow of its own goes first when it came within HOP_NS of the other.
 *
 * When the first is held, others may still go: the reserve is a curve over the flows that wait before one, so the dearer
 * server that the first does not want may be right for one further behind. Where enough of some class wait for a server, it
 * goes to the first of all who would take it idle: a second flow in a fast server's pipe, for one, needs a queue, and is for
 * who stands first in it. A new flow is asked at once, and gets what nobody before it would take, unless a look is about to
 * be made: what became free belongs to those who wait, and no worker lives on the places that its own flows leave. Between
 * the look and the award another worker may be quicker, so a cap may be overshot by workers - 1 flows, never more.
 */
#include "proxy.h"

#include <math.h>
#include <unistd.h>

#define ELDERS_TURN 8
#define HOP_NS 500000ULL

static inline uint64_t bit_of(uint32_t worker) { return 1ULL << worker; }

/* The first of a class changed. */
static void tell_since(struct worker_state *w, uint32_t sla)
{
    const struct session *first = w->queue[sla].first;
    atomic_store(&w->service->lines[w->index].since_ns[sla], first ? first->queued_ns : 0);
}

/* Whether every server was full when this worker looked: new flows anywhere queue behind its flows then. */
static void tell_full(struct worker_state *w, bool full)
{
    if (full == w->full)
        return;
    w->full = full;
    if (full)
        atomic_fetch_or(&w->service->full, bit_of(w->index));
    else
        atomic_fetch_and(&w->service->full, ~bit_of(w->index));
}

uint32_t queue_before(const struct worker_state *w, uint32_t sla, bool *look_due)
{
    const struct service *v = w->service;
    uint32_t before = 0;
    for (uint32_t c = 0; c <= sla; c++)
        before += atomic_load_explicit(&v->waiting[c], memory_order_relaxed);
    *look_due = w->freed || atomic_load(&v->full) || (atomic_load(&v->woken) & atomic_load(&v->waiters));
    return before;
}

void queue_add(struct session *s, enum verdict why)
{
    struct worker_state *w = s->worker;
    struct service *v = w->service;
    uint32_t limit = (w->settings->queue_slots + v->workers - 1) / v->workers;
    if (w->queue_n >= limit) {
        if (why == VERDICT_GONE)            /* it was not asked for yet */
            why = atomic_load(&v->full) ? VERDICT_FULL : VERDICT_HELD;
        if (why == VERDICT_FULL || request_try(s, w->queue_n, true) != VERDICT_GONE)
            session_answer(s, 503, 'Q', OUTCOME_CLIENT_TIMEOUT);
        return;
    }
    struct waiting_list *list = &w->queue[s->sla];
    s->state = SESSION_QUEUED;
    s->queued_ns = w->now_ns;
    s->queue_next = NULL;
    s->queue_prev = list->last;
    *(list->last ? &list->last->queue_next : &list->first) = s;
    list->last = s;
    w->queue_n++;
    COUNT(w, queued, 1);
    COUNT(w, queued_class[s->sla], 1);
    COUNT(w, queue_total, 1);
    arm_timer(w, &s->timer, TIMER_QUEUE, w->settings->timeout_queue_ns);
    atomic_fetch_add(&v->waiting[s->sla], 1);
    if (list->first == s)
        tell_since(w, s->sla);
    if (why != VERDICT_GONE)
        tell_full(w, why == VERDICT_FULL);
    if (w->queue_n == 1) {
        atomic_fetch_or(&v->waiters, bit_of(w->index));
        w->freed = true;                    /* one may have completed between the auction and the bit: look again */
    } else if (why == VERDICT_GONE && !atomic_load(&v->full)) {
        w->freed = true;                    /* the look that it waits for may just have been made */
    } else if (why == VERDICT_HELD && w->yields) {
        w->freed = true;                    /* one more waits, and that is enough for the place that it yielded */
    }
}

void queue_remove(struct session *s)
{
    struct worker_state *w = s->worker;
    struct waiting_list *list = &w->queue[s->sla];
    bool first = list->first == s;
    *(s->queue_prev ? &s->queue_prev->queue_next : &list->first) = s->queue_next;
    *(s->queue_next ? &s->queue_next->queue_prev : &list->last) = s->queue_prev;
    w->queue_n--;
    s->state = SESSION_CONNECTING;
    timer_clear(&s->timer);
    COUNT(w, queued, -1);
    COUNT(w, queued_class[s->sla], -1);
    atomic_fetch_sub(&w->service->waiting[s->sla], 1);
    if (first)
        tell_since(w, s->sla);
    if (w->queue_n == 0) {
        tell_full(w, false);
        atomic_fetch_and(&w->service->waiters, ~bit_of(w->index));
    }
}

static bool is_elder(const struct worker_state *w, uint64_t since_ns)
{
    return since_ns + w->settings->timeout_queue_ns / 2 <= w->now_ns;
}

struct place {
    uint32_t worker, sla;
    uint32_t rank;                          /* 0: it is an elder's turn; else 1 + class */
    uint64_t since_ns;
};

/* Whose turn it is, over all workers. False: nobody waits. */
static bool first_of_all(const struct worker_state *w, struct place *first)
{
    *first = (struct place){0};
    const struct service *v = w->service;
    bool elders = atomic_load(&v->turns) % ELDERS_TURN == ELDERS_TURN - 1;
    bool found = false;
    for (uint64_t left = atomic_load(&v->waiters); left; left &= left - 1) {
        uint32_t worker = (uint32_t)__builtin_ctzll(left);
        for (uint32_t c = 0; c < SLA_CLASSES; c++) {
            uint64_t since = atomic_load(&v->lines[worker].since_ns[c]);
            if (since == 0)
                continue;
            struct place p = {worker, c, elders && is_elder(w, since) ? 0 : 1 + c, since};
            if (worker == w->index)
                p.since_ns -= HOP_NS;
            if (!found || p.rank < first->rank || (p.rank == first->rank && p.since_ns < first->since_ns))
                *first = p;
            found = true;
        }
    }
    return found;
}

static enum verdict try(struct worker_state *w, struct session *s, uint32_t before)
{
    enum verdict verdict = request_try(s, before, is_elder(w, s->queued_ns));
    if (verdict != VERDICT_GONE)
        tell_full(w, verdict == VERDICT_FULL);
    return verdict;
}

/* What a flow that is held was offered. */
struct offer {
    float bid, idle_bid;                    /* INFINITY: not known */
};

/* Do enough of some class wait, over all workers, to take the server that is offered? */
static bool enough_wait(const struct worker_state *w, struct offer offer)
{
    uint32_t before = 0;
    for (uint32_t c = 0; c < SLA_CLASSES; c++) {
        const uint32_t all = atomic_load_explicit(&w->service->waiting[c], memory_order_relaxed);
        before += all;
        if (all && balancer_waiting_for(w->balancer, c, offer.bid) < before)
            return true;
    }
    return false;
}

/* The first of this worker's flows of a class that would take the server idle that is offered; NULL: none. Which places they have among
 * the flows of all workers is not known: they are taken to lie evenly between the others'. */
static struct session *first_willing(const struct worker_state *w, uint32_t sla, uint32_t from, uint32_t all, struct offer offer,
                                     uint32_t *before)
{
    const uint32_t own = (uint32_t)w->counters->queued_class[sla];
    const uint32_t least = balancer_waiting_for(w->balancer, sla, offer.bid);
    const uint32_t idle = balancer_waiting_for(w->balancer, sla, offer.idle_bid), place = idle < least ? idle : least;
    if (own == 0 || all < own || place >= from + all || least == UINT32_MAX)
        return NULL;
    uint32_t nth = place <= from ? 0 : (uint32_t)(((uint64_t)(place - from) * own + all - 1) / all);
    struct session *s = w->queue[sla].first;
    for (uint32_t i = 0; i < nth && s->queue_next; i++)
        s = s->queue_next;
    *before = least > from ? least : from;
    return s;
}

/* The first is held, but there is room. An elder is held no longer, and the others have more flows before them. offer: what the first
 * was offered; where it is not known elders alone are asked. True: one went. */
static bool try_others(struct worker_state *w, const struct session *tried, struct offer offer)
{
    const bool enough = offer.bid < INFINITY && enough_wait(w, offer);
    uint32_t from = 0, before;
    for (uint32_t c = 0; c < SLA_CLASSES; c++) {
        const uint32_t all = atomic_load_explicit(&w->service->waiting[c], memory_order_relaxed);
        struct session *s = w->queue[c].first;
        if (s && s != tried && is_elder(w, s->queued_ns) && try(w, s, from) != VERDICT_HELD)
            return !w->full;
        if (enough && (s = first_willing(w, c, from, all, offer, &before)) && try(w, s, before) != VERDICT_HELD)
            return !w->full;
        from += all;
    }
    return false;
}

static void wake(struct service *v, uint32_t worker)
{
    uint64_t one = 1;
    if (atomic_fetch_or(&v->woken, bit_of(worker)) & bit_of(worker))
        return;
    if (write(v->wake_fds[worker], &one, sizeof one) != sizeof one)
        return;                             /* its counter is full: it is awake */
}

void queue_wake(struct worker_state *w)
{
    struct service *v = w->service;
    w->freed = false;
    if (v->workers > 1) {
        /* What this worker freed is seen by those that begin to wait, or their bits are seen here: a full barrier between the
         * two, which a relaxed store of ours and the load below would not be. */
        atomic_exchange(&w->barrier, 0);
        if (atomic_load(&v->woken) & bit_of(w->index))
            atomic_fetch_and(&v->woken, ~bit_of(w->index));
    }
    struct place first;
    while (first_of_all(w, &first)) {
        bool own = first.worker == w->index;
        struct session *s = own ? w->queue[first.sla].first : NULL;
        if (own) {
            enum verdict verdict = try(w, s, 0);
            if (verdict == VERDICT_GONE)
                continue;
            if (verdict == VERDICT_FULL)
                return;
        } else {
            wake(v, first.worker);
            tell_full(w, false);            /* an old finding: who holds the first looks now, and tells its own */
            if (atomic_load(&v->full))
                return;
        }
        struct offer offer = {own ? w->held_bid : INFINITY, own ? w->idle_bid : INFINITY};
        if (!try_others(w, s, offer))
            return;
    }
}
