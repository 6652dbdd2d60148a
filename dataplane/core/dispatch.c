/* Dispatch: a flow comes, a book holds its auction, the award is accounted for.
 *
 * The hot path of every engine. Before the auction the worker reads what its peers' journals say of in-flight counts, so that
 * its keys are those of this moment; the auction itself is the rule's (bids.c, classic.c, alias.c, wrr.c, maglev.c).
 */
#include "core_private.h"

void book_rekey_all(struct balancer *b, struct book *k)
{
    for (uint32_t i = 0; i < b->n_slots; i++)
        k->rule->rekey(b, k, i, word_in_flight(b, i));
}

static void rekey_all_in_use(struct balancer *b)
{
    if (b->primary.in_use)
        book_rekey_all(b, &b->primary);
    if (b->fallback.in_use)
        book_rekey_all(b, &b->fallback);
}

/* Read one peer's journal up to its head. False: it wrote more than the ring holds since, so entries are lost. */
static bool peer_follow(struct balancer *b, struct peer *p, uint64_t head)
{
    uint64_t slots = (uint64_t)b->journal_mask + 1u, cursor = p->cursor;
    p->cursor = head;
    if (head - cursor >= slots)
        return false;
    for (; cursor != head; cursor++) {
        /* acquire: pairs with the release in journal_append() */
        uint32_t i = __atomic_load_n(&p->journal[cursor & b->journal_mask], __ATOMIC_ACQUIRE);
        if (i < b->n_slots)
            balancer_touch(b, i, word_in_flight(b, i));
        /* The entry was the right one unless the peer came round to this slot meanwhile. */
        if (word_load(&p->worker->journal_head) - cursor >= slots)
            return false;
    }
    return true;
}

void balancer_follow(struct balancer *b)
{
    bool lost = false;
    for (uint32_t p = 0; p < b->n_peers; p++) {
        uint64_t head = word_acquire(&b->peers[p].worker->journal_head); /* pairs with the release in journal_append() */
        if (head != b->peers[p].cursor)
            lost |= !peer_follow(b, &b->peers[p], head);
    }
    if (lost)
        rekey_all_in_use(b);
}

struct award auction(struct balancer *b, const int32_t *key)
{
    struct award award = award_nobody();
    struct scan_least found = b->scan->two_least(key, b->padded);
    if (found.least == KEY_NONE)
        return award;
    uint32_t nth = 0;
    if (found.second == found.least)
        nth = rng_below(&b->rng, b->scan->count(key, b->padded, found.least));
    award.server = award.winner = b->scan->find(key, b->padded, found.least, nth);
    award.bid = bid_of(found.least);
    award.price = bid_of(found.second);
    return award;
}

/* After a new directive all bids are to grow: so many do one by one, then all at once. */
#define GROWN_ALONE 8

/* By bids of this moment: at one moment no bid grows twice, so that this ends. */
static struct award dispatch_now(struct balancer *b, struct book *k, const struct flow_key *key, uint64_t now_ns)
{
    for (uint32_t grown = 1;; grown++) {
        struct award award = k->rule->dispatch(b, k, key);
        if (!k->aging || award.server == NO_SERVER || !bids_grew(b, k, award.server, now_ns))
            return award;
        if (grown == GROWN_ALONE)
            for (uint32_t r = 0; r < b->n_ready; r++)
                bids_grew(b, k, b->ready[r], now_ns);
    }
}

/* Without the servers that failed this flow, if another may take it. */
static struct award dispatch_avoiding(struct balancer *b, struct book *k, const struct flow_key *key, uint64_t now_ns)
{
    uint32_t servers[4] = { key->avoid }, limits[4], n = 1;
    for (uint32_t i = 0; i < key->n_failed && i < 3; i++)
        if (key->failed[i] < b->n_slots)
            servers[n++] = key->failed[i];
    for (uint32_t i = 0; i < n; i++) {
        limits[i] = b->limit[servers[i]];
        b->limit[servers[i]] = 0;
        k->rule->rekey(b, k, servers[i], word_in_flight(b, servers[i]));
    }
    struct award award = dispatch_now(b, k, key, now_ns);
    for (uint32_t i = n; i-- > 0;) {        /* backwards: one that stands there twice gets its own limit back */
        b->limit[servers[i]] = limits[i];
        k->rule->rekey(b, k, servers[i], word_in_flight(b, servers[i]));
    }
    return award.server == NO_SERVER ? dispatch_now(b, k, key, now_ns) : award;
}

/* What the server would bid if it were idle. A server with flows in flight bids more, and so asks for a longer queue; but the place
 * there is for the first in the queue who would take it idle, or flows that came later would overtake for as long as there is a queue.
 * Under the classic rule bids hang on the flow: there it is what it bids. */
static float idle_bid(const struct balancer *b, const struct book *k, const struct award *award)
{
    uint32_t i = award->server;
    return k->rule_id == RULE_BIDS ? curve_at(k->curve[i], 0) * k->scale[i] / b->ramp[i] : award->bid;
}

/* Would one that waits, and goes before this newcomer, take that server idle? */
static bool is_anothers(const struct balancer *b, const struct book *k, const struct flow_key *key, const struct award *award)
{
    if (key->waiting == 0 || k->rule_id != RULE_BIDS)
        return false;
    uint32_t before = 0;
    for (uint32_t c = 0; c <= key->sla && c < SLA_CLASSES; c++) {
        before += key->queued[c];
        if (key->queued[c] && idle_bid(b, k, award) <= curve_at(k->held_above, before - 1) * k->sla_reserve[c])
            return true;
    }
    return false;
}

/* Does the flow wait although somebody bids? Only while a server that it may use has a flow in flight, whose end looks again. */
static enum held why_held(const struct balancer *b, const struct book *k, const struct flow_key *key, const struct award *award)
{
    if (k->held_above == NULL || key->unheld)
        return HELD_NOT;
    float factor = key->sla < SLA_CLASSES ? k->sla_reserve[key->sla] : 1.0f;
    if (award->bid <= curve_at(k->held_above, key->waiting) * factor)
        return is_anothers(b, k, key, award) ? HELD_YIELDS : HELD_NOT;
    for (uint32_t r = 0; r < b->n_ready; r++)
        if (word_in_flight(b, b->ready[r]))
            return HELD_DEAR;
    return HELD_NOT;
}

uint32_t balancer_waiting_for(const struct balancer *b, uint32_t sla, float bid)
{
    const struct book *k = b->fallback_active ? &b->fallback : &b->primary;
    float factor = sla < SLA_CLASSES ? k->sla_reserve[sla] : 1.0f;
    if (k->held_above == NULL || bid <= curve_at(k->held_above, 0) * factor)
        return 0;
    uint32_t low = 0, high = IN_FLIGHT_MAX;         /* held at low, not at high */
    if (!(bid <= curve_at(k->held_above, high) * factor))
        return UINT32_MAX;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (bid <= curve_at(k->held_above, middle) * factor)
            high = middle;
        else
            low = middle;
    }
    return high;
}

struct award balancer_dispatch(struct balancer *b, const struct flow_key *key, uint64_t now_ns)
{
    if (b->n_peers)
        balancer_follow(b);
    bool fallback = b->fallback_active || (b->enforcing_percent < 100 && rng_below(&b->rng, 100) >= b->enforcing_percent);
    struct book *k = fallback ? &b->fallback : &b->primary;
    struct award award;
    if (b->n_ready == 0)
        award = award_nobody();
    else if (key->avoid < b->n_slots)
        award = dispatch_avoiding(b, k, key, now_ns);
    else
        award = dispatch_now(b, k, key, now_ns);
    award.rule = k->rule_id;
    award.load = flow_load(k, key);
    if (award.server == NO_SERVER) {
        award.full = b->n_ready > 0;
        if (award.full)
            COUNT(b->me->no_server_full, 1);
        else
            COUNT(b->me->no_server_down, 1);
        return award;
    }
    award.held = why_held(b, k, key, &award);
    if (award.held != HELD_NOT) {
        award.idle_bid = idle_bid(b, k, &award);
        award.server = NO_SERVER;
        award.full = 1;
        COUNT(b->me->held, 1);
        return award;
    }
    COUNT(b->me->auctions, 1);
    if (fallback)
        COUNT(b->me->auctions_fallback, 1);
    if (award.above_reserve)
        COUNT(b->me->auctions_above_reserve, 1);
    if (award.handoff)
        COUNT(b->me->handoffs, 1);
    /* A partner that takes over has bid more: what was bid is the winner's. */
    struct server_stats *s = &b->stats[award.handoff ? award.winner : award.server];
    COUNT(s->auctions_won, 1);
    COUNT_DOUBLE(s->bid_sum, (double)award.bid);
    if (award.price < INFINITY) {
        COUNT_DOUBLE(s->price_sum, (double)award.price);
        COUNT(s->priced, 1);
        COUNT_DOUBLE(s->margin_sum, (double)award.price - (double)award.bid);
    }
    return award;
}
