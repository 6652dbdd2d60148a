/* Rule alias: a weighted lottery in constant time.
 *
 * Vose, "A Linear Algorithm For Generating Random Numbers With a Given Distribution", IEEE TSE 17(9), 1991. Weights are first
 * rounded to integers that sum to n · 2^32 exactly, so that the table loses nothing to rounding errors that pile up.
 * Uniform weights are ECMP, others WCMP.
 */
#include "core_private.h"
#include <errno.h>

#define ALIAS_TRIES 16              /* draws of servers without room before an exact draw over the others */

#define COLUMN (1ULL << 32)

int alias_build(const float *weights, uint32_t n, uint32_t *keep, uint32_t *other, uint32_t *scratch)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        if (!(weights[i] >= 0.0f) || isinf(weights[i]))
            return -EINVAL;
        sum += (double)weights[i];
    }
    if (!n || n > SERVERS_LIMIT || !(sum > 0.0))
        return -EINVAL;
    /* low and high words of each server's mass left; then the stack: small from the left, large from the right */
    uint32_t *low = scratch, *high = scratch + n, *stack = scratch + 2 * (size_t)n, small = 0, large = n, largest = 0;
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t mass = (uint64_t)((double)weights[i] / sum * (double)n * (double)COLUMN);
        total += mass;
        low[i] = (uint32_t)mass;
        high[i] = (uint32_t)(mass >> 32);
        if (weights[i] > weights[largest])
            largest = i;
    }
    uint64_t mass = ((uint64_t)high[largest] << 32 | low[largest]) + (n * COLUMN - total);
    low[largest] = (uint32_t)mass;
    high[largest] = (uint32_t)(mass >> 32);
    for (uint32_t i = 0; i < n; i++) {
        if (high[i] == 0)
            stack[small++] = i;
        else
            stack[--large] = i;
    }
    while (small && large < n) {
        uint32_t s = stack[--small], l = stack[large];
        keep[s] = low[s];
        other[s] = l;
        mass = ((uint64_t)high[l] << 32 | low[l]) - (COLUMN - low[s]);
        low[l] = (uint32_t)mass;
        high[l] = (uint32_t)(mass >> 32);
        if (high[l] == 0) {
            large++;
            stack[small++] = l;
        }
    }
    /* The masses are integers with an exact sum: whoever is left fills its column. */
    while (small)
        keep[stack[--small]] = UINT32_MAX, other[stack[small]] = stack[small];
    for (; large < n; large++)
        keep[stack[large]] = UINT32_MAX, other[stack[large]] = stack[large];
    return 0;
}

/* The directive's own table is used when it is of these very servers; else one is built from the weights. */
static void alias_prepare(struct balancer *b, struct book *k, const struct directive *d)
{
    share_weights(b, k, d);
    bool same = d && d->off_alias_keep && d->off_alias_other && d->n_servers == b->n_slots;
    for (uint32_t i = 0; same && i < b->n_slots; i++)
        same = k->known[i] || k->weight[i] == 0.0f;
    if (same) {
        memcpy(k->keep, directive_array(d, d->off_alias_keep), b->n_slots * sizeof *k->keep);
        memcpy(k->other, directive_array(d, d->off_alias_other), b->n_slots * sizeof *k->other);
    } else if (alias_build(k->weight, b->n_slots, k->keep, k->other, b->scratch)) {
        for (uint32_t i = 0; i < b->n_slots; i++)
            k->keep[i] = UINT32_MAX, k->other[i] = i;
    }
}

static struct award alias_dispatch(struct balancer *b, struct book *k, const struct flow_key *key)
{
    (void)key;
    struct award award = award_nobody();
    for (uint32_t tries = 0; tries < ALIAS_TRIES; tries++) {
        uint32_t i = rng_below(&b->rng, b->n_slots);
        if ((uint32_t)(rng_next(&b->rng) >> 32) >= k->keep[i])
            i = k->other[i];
        if (k->key[i] == KEY_NONE || (b->ramp[i] < 1.0f && rng_unit(&b->rng) >= b->ramp[i]))
            continue;               /* rejected draws leave the odds of the others as they should be */
        award.server = i;
        return award;
    }
    return share_draw(b, k);
}

const struct rule rule_alias = { .name = "alias", .prepare = alias_prepare, .rekey = share_rekey, .dispatch = alias_dispatch };
