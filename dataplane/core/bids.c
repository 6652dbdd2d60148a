/* Rule bids: each server names what one more flow would cost it; the lowest bid wins, the second-lowest is the price.
 *
 * Vickrey, "Counterspeculation, Auctions, and Competitive Sealed Tenders", Journal of Finance 16(1), 1961.
 * The curves are the directive's; this file only reads them: exact to n = 63, linear between the points above, linear beyond
 * the last. With choices = d only d servers bid, drawn anew for each flow (Mitzenmacher, "The Power of Two Choices in
 * Randomized Load Balancing", IEEE TPDS 12(10), 2001).
 *
 * A server that the directive does not know yet (it joined since) bids the median of the known curves, in the ratio of the
 * configured weights: neither flooded nor starved. A server in slow start bids as if it were slower: its bid is divided by its ramp.
 *
 * A curve says what a flow costs on average. Where times have heavy tails, a server that has ended no flow for long will go on
 * so for longer: its bid grows meanwhile, if the directive says so. Only the winner's is sure to be of this moment: the price may
 * be what the second bid a little earlier.
 *
 * Always: curves never fall; randomness comes from the caller; no clock, no lock, no allocation.
 */
#include "core_private.h"

static void bids_rekey(const struct balancer *b, struct book *k, uint32_t i, uint32_t n)
{
    k->key[i] = has_room(b, i, n) ? key_of(curve_at(k->curve[i], n) * k->scale[i] / b->ramp[i]) : KEY_NONE;
}

bool bids_grew(struct balancer *b, struct book *k, uint32_t i, uint64_t now_ns)
{
    uint64_t word = word_load(&b->words[i].word);
    uint32_t n = (uint32_t)(word >> WORD_TIME_BITS);
    int32_t before = k->key[i];
    if (!k->known[i] || k->aging[i].per_second <= 0.0f || (float)n < k->aging[i].from)
        return false;
    bids_rekey(b, k, i, n);             /* it may have grown before */
    if (k->key[i] == KEY_NONE)
        return true;
    float seconds = (float)(word_elapsed(word, word_time(now_ns)) << WORD_TIME_SHIFT) * 1e-9f;
    k->key[i] = key_of(bid_of(k->key[i]) * (1.0f + k->aging[i].per_second * seconds));
    return k->key[i] > before;
}

/* Move the median of v[0 … n - 1] to its place and return it (Hoare's selection). */
static float median(float *v, uint32_t n)
{
    uint32_t from = 0, to = n - 1, middle = n / 2;
    while (from < to) {
        float pivot = v[from + (to - from) / 2];
        uint32_t i = from, j = to;
        for (;;) {
            while (v[i] < pivot)
                i++;
            while (v[j] > pivot)
                j--;
            if (i >= j)
                break;
            float swap = v[i];
            v[i++] = v[j];
            v[j--] = swap;
        }
        uint32_t split = v[j] > pivot ? j - 1 : j;
        if (middle <= split)
            to = split;
        else
            from = split + 1;
    }
    return v[middle];
}

/* What a server of weight 1 would bid, were it like the others. Medians of curves that never fall never fall. */
static void prior_from_known(struct balancer *b, struct book *k, const float *curves)
{
    const struct server_entry *e = entries_of(b->settings);
    float *values = b->scratch;
    for (uint32_t point = 0; point < CURVE_POINTS; point++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < b->n_slots; i++)
            if (k->known[i] && e[i].weight)
                values[n++] = curves[(size_t)i * CURVE_POINTS + point] * (float)e[i].weight;
        k->prior[point] = n ? median(values, n) : (float)(curve_bin_low(point) + 1);
    }
}

static void bids_prepare(struct balancer *b, struct book *k, const struct directive *d)
{
    const struct server_entry *e = entries_of(b->settings);
    const float *curves = d ? directive_array(d, d->off_curves) : NULL;
    k->choices = d ? d->choices : b->settings->fallback_choices;
    if (d) {
        bool all_known = true;
        for (uint32_t i = 0; i < b->n_slots; i++)
            all_known = all_known && (k->known[i] || !e[i].id);
        if (!all_known)
            prior_from_known(b, k, curves);
    } else {
        static const float constant[] = { [FALLBACK_LSQ] = 0.0f, [FALLBACK_SED] = 1.0f, [FALLBACK_GSED] = 0.5f };
        for (uint32_t point = 0; point < CURVE_POINTS; point++)
            k->prior[point] = (float)curve_bin_low(point) + constant[b->settings->fallback_curve];
    }
    bool unweighted = !d && b->settings->fallback_curve == FALLBACK_LSQ;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        bool known = d && k->known[i];
        k->curve[i] = known ? curves + (size_t)i * CURVE_POINTS : k->prior;
        k->scale[i] = known || unweighted || !e[i].weight ? 1.0f : 1.0f / (float)e[i].weight;
    }
}

/* The auction so far, when few bid. */
struct bidding {
    struct award award;
    int32_t least, second;
    uint32_t equal;
};

static inline void hear(struct balancer *b, struct bidding *g, const int32_t *key, uint32_t i)
{
    if (key[i] < g->least) {
        g->second = g->least;
        g->least = key[i];
        g->award.server = i;
        g->equal = 1;
    } else {
        if (key[i] < g->second)
            g->second = key[i];
        if (key[i] == g->least && rng_below(&b->rng, ++g->equal) == 0)
            g->award.server = i;
    }
    b->stamp[i] = b->stamp_now;
}

/* Each set of d servers that may bid is as likely as any other: draws of others are rejected, and when that takes too long
 * (most are full) the rest of the set is drawn in one exact walk. */
static struct award auction_of_few(struct balancer *b, struct book *k)
{
    struct bidding g = { .award = award_nobody(), .least = KEY_NONE, .second = KEY_NONE };
    if (++b->stamp_now == 0) {
        memset(b->stamp, 0, b->max_servers * sizeof *b->stamp);
        b->stamp_now = 1;
    }
    uint32_t want = k->choices;
    for (uint32_t tries = 4 * want + 16; want && tries; tries--) {
        uint32_t i = b->ready[rng_below(&b->rng, b->n_ready)];
        if (k->key[i] == KEY_NONE || b->stamp[i] == b->stamp_now)
            continue;
        hear(b, &g, k->key, i);
        want--;
    }
    if (want) {
        uint32_t left = 0;
        for (uint32_t r = 0; r < b->n_ready; r++)
            left += k->key[b->ready[r]] != KEY_NONE && b->stamp[b->ready[r]] != b->stamp_now;
        for (uint32_t r = 0; r < b->n_ready && want && left; r++) {
            uint32_t i = b->ready[r];
            if (k->key[i] == KEY_NONE || b->stamp[i] == b->stamp_now)
                continue;
            if (rng_below(&b->rng, left--) < want) {
                hear(b, &g, k->key, i);
                want--;
            }
        }
    }
    if (g.award.server != NO_SERVER) {
        g.award.bid = bid_of(g.least);
        g.award.price = bid_of(g.second);
    }
    return g.award;
}

static struct award bids_dispatch(struct balancer *b, struct book *k, const struct flow_key *key)
{
    (void)key;
    if (k->choices && k->choices < b->n_ready)
        return auction_of_few(b, k);
    return auction(b, k->key);
}

const struct rule rule_bids = { .name = "bids", .prepare = bids_prepare, .rekey = bids_rekey, .dispatch = bids_dispatch };
