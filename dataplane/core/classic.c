/* Rule classic: the seed's auction, whose bid depends on the server's load and on the flow's. DESIGN, section 3:
 *
 *     load ratio  ρ = min(L / c, 1)
 *     base bid      = s·ρ + x
 *     adjusted      = base · (1 + r·max(0, ρ − t)) · neural
 *     noise         : + ε, uniform in [0, noise)
 *     final bid     = min(adjusted · (1 + c/200), 1000)
 *
 * L is the load in flight over all workers, x the flow's. A winner above the reserve is flagged, not refused; reserve 0: none.
 * A winner whose ρ exceeds the directive's coalition_above shares with its partners: the servers of its coalition with ρ below
 * coalition_below that may take a flow. One of winner and partners, drawn in proportion to their Shapley values, takes it; bid and
 * price stay the auction's.
 * A server that the directive does not know has the mean parameters of those that it does, and capacity in the ratio of the
 * configured weights. A server in slow start has its capacity times its ramp.
 */
#include "core_private.h"

#define CLASSIC_CAP 1000.0f

static const struct classic_server unknown = {
    .capacity = 0.0f, .sensitivity = 1.0f, .risk_aversion = 0.5f, .target_load_ratio = 0.5f, .neural = 1.0f
};

/* Load in flight on server i over all workers. */
static double load_of(const struct balancer *b, uint32_t i)
{
    double sum = b->stats[i].load_in_flight;
    for (uint32_t p = 0; p < b->n_peers; p++) {
        const struct server_stats *s = &b->all_stats[(size_t)b->peers[p].index * b->max_servers + i];
        double load;
        __atomic_load(&s->load_in_flight, &load, __ATOMIC_RELAXED);
        sum += load;
    }
    return sum;
}

static void classic_rekey(const struct balancer *b, struct book *k, uint32_t i, uint32_t n)
{
    if (!has_room(b, i, n)) {
        k->key[i] = KEY_NONE;
        return;
    }
    const struct classic_server *s = &k->classic.servers[i];
    float capacity = s->capacity * b->ramp[i];
    float ratio = (float)load_of(b, i) / capacity;
    ratio = ratio < 1.0f ? ratio : 1.0f;
    float above = ratio - s->target_load_ratio;
    k->classic.ratio[i] = ratio;
    k->classic.base[i] = s->sensitivity * ratio;
    k->classic.factor[i] = (1.0f + s->risk_aversion * (above > 0.0f ? above : 0.0f)) * s->neural;
    k->classic.tail[i] = 1.0f + capacity / 200.0f;
    k->key[i] = 0;
}

static void classic_prepare(struct balancer *b, struct book *k, const struct directive *d)
{
    const struct server_entry *e = entries_of(b->settings);
    const struct classic_server *rows = d ? directive_array(d, d->off_classic) : NULL;
    struct classic_server mean = unknown;
    double capacity = 0.0, sensitivity = 0.0, risk = 0.0, target = 0.0, weight = 0.0, n = 0.0;
    for (uint32_t i = 0; rows && i < b->n_slots; i++) {
        if (!k->known[i])
            continue;
        capacity += (double)rows[i].capacity;
        sensitivity += (double)rows[i].sensitivity;
        risk += (double)rows[i].risk_aversion;
        target += (double)rows[i].target_load_ratio;
        weight += (double)e[i].weight;
        n += 1.0;
    }
    if (n > 0.0) {
        mean.sensitivity = (float)(sensitivity / n);
        mean.risk_aversion = (float)(risk / n);
        mean.target_load_ratio = (float)(target / n);
    }
    float scale = capacity > 0.0 && weight > 0.0 ? (float)(capacity / weight) : 1.0f;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        bool known = rows && k->known[i];
        k->classic.servers[i] = known ? rows[i] : mean;
        if (!known)
            k->classic.servers[i].capacity = (e[i].weight ? (float)e[i].weight : 1.0f) * scale;
    }
    memset(k->classic.noise, 0, b->padded * sizeof *k->classic.noise);
    k->noise = d ? d->classic_noise : 0.0f;
    k->reserve = d ? d->classic_reserve : 0.0f;
    k->coalition_above = d ? d->coalition_above : 0.0f;
    k->coalition_below = d ? d->coalition_below : 0.0f;
}

/* Does server i of this coalition take over from the winner? The winner itself stands for its own share. */
static inline bool shares_in(const struct book *k, uint32_t i, uint32_t winner, uint32_t coalition)
{
    return k->classic.servers[i].coalition == coalition && k->key[i] != KEY_NONE &&
           (i == winner || k->classic.ratio[i] < k->coalition_below);
}

/* Who of the winner's coalition takes the flow: the winner, unless it is overloaded and has partners. */
static uint32_t hand_off(struct balancer *b, const struct book *k, uint32_t winner)
{
    const struct classic_server *servers = k->classic.servers;
    uint32_t coalition = servers[winner].coalition, n = 0, last = winner;
    if (coalition == 0 || !(k->classic.ratio[winner] > k->coalition_above))
        return winner;
    double sum = 0.0;
    for (uint32_t i = 0; i < b->n_slots; i++)
        if (shares_in(k, i, winner, coalition)) {
            sum += (double)servers[i].shapley;
            n++;
        }
    if (n < 2)
        return winner;
    bool evenly = !(sum > 0.0);     /* nobody has anything to contribute: all alike */
    double left = (evenly ? (double)n : sum) * (double)(rng_next(&b->rng) >> 11) * 0x1p-53;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        double share = shares_in(k, i, winner, coalition) ? (evenly ? 1.0 : (double)servers[i].shapley) : 0.0;
        if (share <= 0.0)
            continue;
        last = i;
        left -= share;
        if (left < 0.0)
            break;
    }
    return last;
}

/* What everybody asks for a flow of this load, as keys; written once, compiled for either width. */
static inline __attribute__((always_inline)) void ask(const struct book *k, float load, const float *noise, int32_t *bids,
                                                      uint32_t padded)
{
    const float *base = k->classic.base, *factor = k->classic.factor, *tail = k->classic.tail;
    for (uint32_t i = 0; i < padded; i++) {
        union { float f; int32_t i; } asked = { .f = ((base[i] + load) * factor[i] + noise[i]) * tail[i] };
        asked.f = asked.f < CLASSIC_CAP ? asked.f : CLASSIC_CAP;
        bids[i] = asked.i > k->key[i] ? asked.i : k->key[i];
    }
}

static void ask_portable(const struct book *k, float load, const float *noise, int32_t *bids, uint32_t padded)
{
    ask(k, load, noise, bids, padded);
}

SCAN_AVX2 static void ask_wide(const struct book *k, float load, const float *noise, int32_t *bids, uint32_t padded)
{
    ask(k, load, noise, bids, padded);
}

static struct award classic_dispatch(struct balancer *b, struct book *k, const struct flow_key *key)
{
    float load = flow_load(k, key);
    for (uint32_t i = 0; i < b->n_slots && k->noise > 0.0f; i++)
        k->classic.noise[i] = rng_unit(&b->rng) * k->noise;
    if (b->scan->wide)
        ask_wide(k, load, k->classic.noise, b->bids, b->padded);
    else
        ask_portable(k, load, k->classic.noise, b->bids, b->padded);
    struct award award = auction(b, b->bids);
    if (award.server == NO_SERVER)
        return award;
    award.above_reserve = k->reserve > 0.0f && award.bid > k->reserve;
    if (k->coalition_below > 0.0f) {
        uint32_t taker = hand_off(b, k, award.server);
        award.handoff = taker != award.server;
        award.server = taker;
    }
    return award;
}

const struct rule rule_classic = {
    .name = "classic", .prepare = classic_prepare, .rekey = classic_rekey, .dispatch = classic_dispatch
};
