/* Shares of servers: what a lottery and a turn go by.
 *
 * A server's share is the directive's weight where the row is of this very server, else its configured weight on the same
 * scale; in slow start it counts with its ramp. A draw here is exact over those that have room, whoever is full: rules use it
 * when their own quick way missed too often, or gives nothing to the only servers left (a policy never starves a service).
 */
#include "core_private.h"

/* Weights from the directive, or recovered from its alias table; NULL: none. */
static const float *directive_weights(const struct balancer *b, const struct book *k, const struct directive *d, float *room)
{
    if (d->off_weights)
        return directive_array(d, d->off_weights);
    (void)k;
    if (!d->off_alias_keep || !d->off_alias_other)
        return NULL;
    const uint32_t *keep = directive_array(d, d->off_alias_keep), *other = directive_array(d, d->off_alias_other);
    uint32_t n = d->n_servers < b->n_slots ? d->n_servers : b->n_slots;
    for (uint32_t i = 0; i < n; i++)
        room[i] = 0.0f;
    for (uint32_t i = 0; i < d->n_servers; i++) {
        float kept = (float)keep[i] * 0x1p-32f;
        if (i < n)
            room[i] += kept;
        if (other[i] < n)
            room[other[i]] += 1.0f - kept;
    }
    return room;
}

void share_weights(const struct balancer *b, struct book *k, const struct directive *d)
{
    const struct server_entry *e = entries_of(b->settings);
    const float *weights = d ? directive_weights(b, k, d, b->scratch) : NULL;
    double learned = 0.0, configured = 0.0;
    for (uint32_t i = 0; weights && i < b->n_slots; i++) {
        if (k->known[i]) {
            learned += (double)weights[i];
            configured += (double)e[i].weight;
        }
    }
    float scale = learned > 0.0 && configured > 0.0 ? (float)(learned / configured) : 1.0f;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        if (weights && k->known[i])
            k->weight[i] = weights[i];
        else
            k->weight[i] = e[i].id ? (float)e[i].weight * scale : 0.0f;
    }
}

void share_rekey(const struct balancer *b, struct book *k, uint32_t i, uint32_t n)
{
    k->key[i] = has_room(b, i, n) ? 0 : KEY_NONE;
}

static float share_of(const struct balancer *b, const struct book *k, uint32_t i, bool configured)
{
    if (!has_room(b, i, word_in_flight(b, i)))
        return 0.0f;
    return (configured ? (float)entries_of(b->settings)[i].weight : k->weight[i]) * b->ramp[i];
}

struct award share_draw(struct balancer *b, struct book *k)
{
    struct award award = award_nobody();
    for (int configured = 0; configured < 2 && award.server == NO_SERVER; configured++) {
        double sum = 0.0;
        for (uint32_t r = 0; r < b->n_ready; r++)
            sum += (double)share_of(b, k, b->ready[r], configured);
        double left = sum * (double)(rng_next(&b->rng) >> 11) * 0x1p-53;
        for (uint32_t r = 0; r < b->n_ready && sum > 0.0; r++) {
            double share = (double)share_of(b, k, b->ready[r], configured);
            if (share <= 0.0)
                continue;
            award.server = b->ready[r];
            left -= share;
            if (left < 0.0)
                break;
        }
    }
    return award;
}
