/* The life of a flow: opened on a server, closed with an outcome; and what is remembered of it.
 *
 * The shared word {n, time} of a server is moved by whoever opens or closes a flow there, and the mover charges the time since the
 * last move to its own time_ns[n]: over all workers they add up to the time that passed. What a flow's end leaves:
 *
 *     outcome            in flight   completions   profile A, F; histogram; reservoirs   failures in a row
 *     ok                 -1          +1            yes                                   back to 0
 *     5xx                -1          +1            yes                                   +1
 *     server timeout     -1                        yes: a lower bound (censored)         +1
 *     connect failed     -1                                                              +1
 *     server abort       -1                                                              +1
 *     client abort, client timeout  -1
 *
 * The profile's F is the time at the server, from assigned_ns: waiting in our own queue is not the server's doing. Histogram and
 * reservoirs have the flow completion time as its client saw it, from opened_ns.
 *
 * A flow that outlives its server's id (the slot has another server now) only leaves the in-flight counts.
 */
#include "core_private.h"

/* Server i's n before and after a move. */
struct move {
    uint32_t before, after;
    uint64_t elapsed_ns;            /* spent with n = before */
};

static inline struct move word_move(struct balancer *b, uint32_t i, bool up, uint64_t now_ns)
{
    uint64_t *word = &b->words[i].word, old = word_load(word), moved;
    struct move m;
    do {
        uint64_t elapsed = word_elapsed(old, word_time(now_ns)), time = (old + elapsed) & WORD_TIME_MASK;
        m.before = (uint32_t)(old >> WORD_TIME_BITS);
        m.after = up ? m.before + (m.before < IN_FLIGHT_MAX) : m.before - (m.before > 0);
        m.elapsed_ns = elapsed << WORD_TIME_SHIFT;
        moved = (uint64_t)m.after << WORD_TIME_BITS | time;
        if (b->alone) {
            word_store(word, moved);
            break;
        }
    } while (!__atomic_compare_exchange_n(word, &old, moved, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return m;
}

void flow_open(struct balancer *b, struct flow *f, uint32_t server, float load, uint64_t opened_ns, uint64_t now_ns)
{
    if (server >= b->n_slots) {
        f->server = NO_SERVER;
        return;
    }
    struct server_stats *s = &b->stats[server];
    struct move m = word_move(b, server, true, now_ns);
    COUNT(s->time_ns[curve_bin(m.before)], m.elapsed_ns);
    COUNT(s->in_flight, 1);
    COUNT(s->flows_total, 1);
    STORE(s->last_open_ns, now_ns);
    load = load >= 0.0f && !isinf(load) ? load : 0.0f;
    if (load > 0.0f)
        COUNT_DOUBLE(s->load_in_flight, (double)load);
    *f = (struct flow){ .opened_ns = opened_ns, .assigned_ns = now_ns, .server_id = entries_of(b->settings)[server].id, .server = server,
                        .found = m.before, .load = load };
    struct flow *head = b->open[server];
    if (head) {                     /* last of the circle */
        f->next = head;
        f->prev = head->prev;
        head->prev->next = f;
        head->prev = f;
    } else {
        b->open[server] = f->next = f->prev = f;
    }
    balancer_touch(b, server, m.after);
    journal_append(b, server);
}

static bool is_completion(enum outcome outcome)
{
    return outcome == OUTCOME_OK || outcome == OUTCOME_SERVER_5XX;
}

/* What the end of the flow says of the server. */
static void count_outcome(struct server_stats *s, enum outcome outcome)
{
    COUNT(s->outcomes[outcome], 1);
    switch (outcome) {
    case OUTCOME_OK:
        STORE(s->failures_in_a_row, 0);
        STORE(s->gateway_failures_in_a_row, 0);
        break;
    case OUTCOME_CLIENT_ABORT:
    case OUTCOME_CLIENT_TIMEOUT:
        break;
    case OUTCOME_SERVER_5XX:
        COUNT(s->failures_in_a_row, 1);
        break;
    default:
        COUNT(s->failures_in_a_row, 1);
        COUNT(s->gateway_failures_in_a_row, 1);
    }
}

static void take_sample(struct balancer *b, struct server_stats *s, uint32_t i, const struct flow *f, uint64_t now_ns)
{
    uint64_t at_server = now_ns > f->assigned_ns ? now_ns - f->assigned_ns : 0;
    uint64_t fct = now_ns > f->opened_ns ? now_ns - f->opened_ns : 0;
    uint32_t found = curve_bin(f->found);
    COUNT(s->arrivals[found], 1);
    COUNT(s->found_fct_ns[found], at_server);
    COUNT(s->fct_histogram[histogram_bucket(fct)], 1);
    reservoir_add(b, i, METRIC_FCT, now_ns, fct);
    reservoir_add(b, i, METRIC_DURATION, now_ns, fct);
}

/* Take the flow off its server. False: it was not open. *s is NULL when the slot has another server since. */
static bool flow_leave(struct balancer *b, struct flow *f, uint64_t now_ns, struct server_stats **s, uint32_t *before)
{
    uint32_t i = f->server;
    if (i >= b->max_servers || !f->next)
        return false;
    f->next->prev = f->prev;
    f->prev->next = f->next;
    if (b->open[i] == f)
        b->open[i] = f->next == f ? NULL : f->next;
    f->next = f->prev = NULL;
    f->server = NO_SERVER;
    struct server_stats *own = &b->stats[i];
    struct move m = word_move(b, i, false, now_ns);
    COUNT(own->in_flight, own->in_flight ? -1ULL : 0ULL);
    if (f->load > 0.0f || own->in_flight == 0) {
        /* back to zero with the last flow: rounding errors do not pile up */
        double load = own->in_flight && own->load_in_flight > (double)f->load ? own->load_in_flight - (double)f->load : 0.0;
        __atomic_store(&own->load_in_flight, &load, __ATOMIC_RELAXED);
    }
    *s = i < b->n_slots && entries_of(b->settings)[i].id == f->server_id ? own : NULL;
    *before = m.before;
    if (*s) {
        COUNT(own->time_ns[curve_bin(m.before)], m.elapsed_ns);
        STORE(own->last_close_ns, now_ns);
    }
    if (i < b->n_slots)
        balancer_touch(b, i, m.after);
    journal_append(b, i);
    return true;
}

void flow_close(struct balancer *b, struct flow *f, uint64_t now_ns, uint64_t bytes_in, uint64_t bytes_out, enum outcome outcome)
{
    struct server_stats *s;
    uint32_t before, server = f->server;
    if (!flow_leave(b, f, now_ns, &s, &before))
        return;
    if (s && (uint32_t)outcome < OUTCOMES) {
        count_outcome(s, outcome);
        COUNT(s->bytes_in, bytes_in);
        COUNT(s->bytes_out, bytes_out);
        if (is_completion(outcome)) {
            COUNT(s->completions[curve_bin(before)], 1);
            COUNT(s->fct_sum_ns, now_ns > f->opened_ns ? now_ns - f->opened_ns : 0);
        }
        if (is_completion(outcome) || outcome == OUTCOME_SERVER_TIMEOUT)
            take_sample(b, s, server, f, now_ns);
    }
}

void flow_retry(struct balancer *b, struct flow *f, uint64_t now_ns, enum outcome outcome)
{
    struct server_stats *s;
    uint32_t before;
    if (!flow_leave(b, f, now_ns, &s, &before))
        return;
    if (s && (uint32_t)outcome < OUTCOMES) {
        count_outcome(s, outcome);
        COUNT(s->retries, 1);
    }
}

void balancer_sample(struct balancer *b, uint64_t now_ns)
{
    for (uint32_t i = 0; i < b->n_slots; i++) {
        struct flow *first = b->open[i], *f = first;
        for (uint32_t taken = 0; f && taken < b->settings->sample_durations; taken++) {
            if (f->server_id == entries_of(b->settings)[i].id)
                reservoir_add(b, i, METRIC_DURATION, now_ns, now_ns > f->opened_ns ? now_ns - f->opened_ns : 0);
            f = f->next;
            b->open[i] = f;         /* the next tick goes on here: every flow has its turn */
            if (f == first)
                break;
        }
    }
}
