/* The distributions that the simulator draws from, over the core's generator; one generator per purpose, so that what one
 * purpose draws never shifts another's sequence.
 */
#ifndef VICKREY_SIM_RANDOM_H
#define VICKREY_SIM_RANDOM_H

#include "../core/rng.h"
#include <math.h>

/* Uniform in (0, 1), never an end: its logarithm is finite. */
static inline double random_unit(struct rng *r)
{
    return ((double)(rng_next(r) >> 12) + 0.5) * 0x1p-52;
}

/* Uniform in 0 … n - 1; the bias is below n / 2^64. */
static inline uint64_t random_below(struct rng *r, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)rng_next(r) * n) >> 64);
}

/* Mean 1. */
static inline double random_exponential(struct rng *r)
{
    return -log(random_unit(r));
}

/* Mean 0, deviation 1, by Box and Muller; the second of the pair is not kept, so each call draws the same number of times. */
static inline double random_normal(struct rng *r)
{
    double radius = sqrt(-2.0 * log(random_unit(r)));
    return radius * cos(6.283185307179586 * random_unit(r));
}

#endif
