/* Reservoirs: a sample of a stream that favours the recent.
 *
 * Aggarwal, "On Biased Reservoir Sampling in the Presence of Stream Evolution", VLDB 2006, algorithm 2.1 with p_in = 1: once full, each
 * sample replaces a random one, so that ages are geometric with mean equal to the number of slots.
 *
 * Always: one writer, its worker; a reader takes a consistent copy under the sequence (shm_layout/rows.c).
 */
#include "core_private.h"

static struct reservoir *reservoir_of(const struct balancer *b, uint32_t i, enum metric metric)
{
    return (struct reservoir *)(void *)(b->reservoirs + ((uint64_t)i * METRICS + (uint32_t)metric) * b->reservoir_stride);
}

void reservoir_add(struct balancer *b, uint32_t i, enum metric metric, uint64_t now_ns, uint64_t value_ns)
{
    struct reservoir *r = reservoir_of(b, i, metric);
    uint64_t count = LOAD(r->count);
    uint32_t slot = count < b->reservoir_slots ? (uint32_t)count : rng_below(&b->rng, b->reservoir_slots);
    struct sample *sample = (struct sample *)(void *)(r + 1) + slot;
    uint64_t odd = sequence_begin(&r->sequence);
    word_release(&r->count, count + 1u);
    word_release(&sample->time_ns, now_ns ? now_ns : 1);
    word_release(&sample->value_ns, value_ns);
    sequence_end(&r->sequence, odd);
}

void reservoir_reset(struct balancer *b, uint32_t i, uint64_t id)
{
    for (int metric = 0; metric < METRICS; metric++) {
        struct reservoir *r = reservoir_of(b, i, (enum metric)metric);
        struct sample *sample = (struct sample *)(void *)(r + 1);
        uint64_t odd = sequence_begin(&r->sequence);
        word_release(&r->count, 0);
        word_release(&r->id, id);
        for (uint32_t slot = 0; slot < b->reservoir_slots; slot++) {
            word_release(&sample[slot].time_ns, 0);
            word_release(&sample[slot].value_ns, 0);
        }
        sequence_end(&r->sequence, odd);
    }
}
