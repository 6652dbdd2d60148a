/* The statistics of one reservoir, kept up to date as its samples change: what shm_layout/features.py computes from a copy,
 * at a cost in proportion to the samples that were replaced since the last look.
 *
 * A sample's weight is 2^((its time - a fixed reference) / half life): ages then need not be known, since the reference
 * cancels in every quotient. The samples' order by value is kept in a list, into which changed samples are sorted anew. A sample
 * has changed when it is not older than the last look.
 *
 * Always: the reservoir is not written meanwhile, and its writer's clock never runs back: true of the simulator, which is
 *         single-threaded and reads its own segments.
 */
#ifndef VICKREY_SIM_STATISTICS_H
#define VICKREY_SIM_STATISTICS_H

#include "../../shm_layout/segment.h"

/* In the order of the observation's columns. */
enum { STATISTIC_MEAN, STATISTIC_P90, STATISTIC_STD, STATISTIC_MEAN_DECAY, STATISTIC_P90_DECAY, STATISTICS };

/* One reservoir's; the arrays follow in the caller's memory. */
struct statistics {
    double *weight;
    uint16_t *order;                /* slots by rising value */
    uint64_t id, count;             /* the reservoir's at the last look */
    uint64_t reference_ns, looked_ns;
    uint32_t held;                  /* samples */
    double value[STATISTICS];       /* seconds */
};

/* Bytes that the arrays of so many slots take, and their place: memory lies on 8 bytes. */
uint64_t statistics_size(uint32_t slots);
void statistics_place(struct statistics *s, uint32_t slots, void *memory);

/* Forget all samples. */
void statistics_reset(struct statistics *s);

/* Look, at now_ns, at the reservoir of server id; nothing is known when it is another's, or empty: held is 0. */
void statistics_look(struct statistics *s, const struct reservoir *r, uint32_t slots, uint64_t id, uint64_t now_ns,
                     double half_life_ns);

#endif
