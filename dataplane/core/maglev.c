/* Rule maglev: a consistent hash of the flow's key, the same on every balancer of a fleet.
 *
 * Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4. Weighted: a server
 * takes its turns to fill the table in proportion to its weight, the heaviest at every one.
 *
 * A flow whose server may not take it goes where a second hash says, and so on, each time the same for the same flow. In slow
 * start a server refuses flows by their hash, so that those it takes are a growing set.
 */
#include "core_private.h"
#include <errno.h>

#define MAGLEV_TRIES 16
#define MAGLEV_EMPTY UINT32_MAX
#define MAGLEV_OFFSET 0x6d61676c65766f66ULL
#define MAGLEV_SKIP 0x6d61676c6576736bULL

/* A server's walk over the table: the permutation (offset + j · skip) mod size. */
struct walk {
    double gained;
    uint32_t at, skip;
};

size_t maglev_scratch(uint32_t n)
{
    return n * sizeof(struct walk);
}

static bool is_prime(uint32_t n)
{
    if (n < 2)
        return false;
    for (uint32_t d = 2; d * d <= n; d++)
        if (n % d == 0)
            return false;
    return true;
}

/* The slot that this server likes best of those that are free. Some slot must be free. */
static uint32_t walk_to_free(struct walk *w, const uint32_t *table, uint32_t size)
{
    for (;;) {
        uint32_t slot = w->at;
        w->at += w->skip;
        w->at = w->at >= size ? w->at - size : w->at;
        if (table[slot] == MAGLEV_EMPTY)
            return slot;
    }
}

int maglev_build(const float *weights, const uint64_t *ids, uint32_t n, uint32_t *table, uint32_t size, void *scratch)
{
    struct walk *walk = scratch;
    float heaviest = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        if (!(weights[i] >= 0.0f) || isinf(weights[i]))
            return -EINVAL;
        heaviest = weights[i] > heaviest ? weights[i] : heaviest;
    }
    if (!n || n > SERVERS_LIMIT || size > 1048576 || !(heaviest > 0.0f) || !is_prime(size))
        return -EINVAL;
    for (uint32_t i = 0; i < n; i++) {
        walk[i].gained = 0.0;
        walk[i].at = (uint32_t)(rng_mix(ids[i] ^ MAGLEV_OFFSET) % size);
        walk[i].skip = size > 2 ? (uint32_t)(rng_mix(ids[i] ^ MAGLEV_SKIP) % (size - 1)) + 1 : 1;
    }
    for (uint32_t slot = 0; slot < size; slot++)
        table[slot] = MAGLEV_EMPTY;
    for (uint32_t filled = 0; filled < size;) {
        for (uint32_t i = 0; i < n && filled < size; i++) {
            walk[i].gained += (double)weights[i] / (double)heaviest;
            if (walk[i].gained < 1.0)
                continue;
            walk[i].gained -= 1.0;
            table[walk_to_free(&walk[i], table, size)] = i;
            filled++;
        }
    }
    return 0;
}

/* The fallback's table: as many entries as there is room for, at most the paper's 65537. */
static void build_own_table(struct balancer *b, struct book *k)
{
    const struct server_entry *e = entries_of(b->settings);
    uint32_t size = b->table_room < 65537 ? b->table_room : 65537;
    while (size > 1 && !is_prime(size))
        size--;
    uint64_t made_for = rng_mix(size);
    for (uint32_t i = 0; i < b->n_slots; i++)
        made_for = rng_mix(made_for ^ e[i].id) ^ e[i].weight;
    k->table = k->own_table;
    if (k->table_made_for == made_for && k->table_slots)
        return;
    uint64_t *ids = (uint64_t *)(void *)b->directive_spare; /* free between two reads */
    for (uint32_t i = 0; i < b->n_slots; i++)
        ids[i] = e[i].id;
    k->table_slots = size > 1 && !maglev_build(k->weight, ids, b->n_slots, k->own_table, size, b->scratch) ? size : 0;
    k->table_made_for = made_for;
}

static void maglev_prepare(struct balancer *b, struct book *k, const struct directive *d)
{
    share_weights(b, k, d);
    if (d) {
        k->table = directive_array(d, d->off_table);
        k->table_slots = d->table_slots;
    } else {
        build_own_table(b, k);
    }
    if (d)                          /* a slot that has another server now is not the one that the table means */
        return;
    for (uint32_t i = 0; i < b->n_slots; i++)
        k->known[i] = 1;
}

static struct award maglev_dispatch(struct balancer *b, struct book *k, const struct flow_key *key)
{
    struct award award = award_nobody();
    uint64_t hash = key->hash;
    for (uint32_t tries = 0; k->table_slots && tries < MAGLEV_TRIES; tries++) {
        uint32_t i = k->table[hash % k->table_slots];
        hash = rng_mix(hash);
        if (i >= b->n_slots || !k->known[i] || k->key[i] == KEY_NONE)
            continue;
        if (b->ramp[i] < 1.0f && (float)(hash >> 40) * 0x1p-24f >= b->ramp[i])
            continue;
        award.server = i;
        return award;
    }
    /* Most servers are out: walk from a place that the hash names, past those without weight if another has room. */
    for (uint32_t r = 0, start = (uint32_t)(hash % b->n_ready); r < b->n_ready; r++) {
        uint32_t i = b->ready[(start + r) % b->n_ready];
        if (k->key[i] == KEY_NONE)
            continue;
        if (award.server == NO_SERVER || k->weight[award.server] == 0.0f)
            award.server = i;
        if (k->weight[i] > 0.0f)
            break;
    }
    return award;
}

const struct rule rule_maglev = {
    .name = "maglev", .prepare = maglev_prepare, .rekey = share_rekey, .dispatch = maglev_dispatch
};
