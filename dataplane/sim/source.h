/* Where flows come from: the arrival process, the demands and the clients of one simulation. */
#ifndef VICKREY_SIM_SOURCE_H
#define VICKREY_SIM_SOURCE_H

#include "random.h"
#include "sim.h"
#include <stdbool.h>

#define NEVER UINT64_MAX

struct source {
    uint64_t next_ns;               /* of the next candidate, since the start; NEVER: no more */
    uint64_t phase_end_ns;          /* on/off: when the phase ends */
    uint64_t made;                  /* flows so far */
    uint64_t candidate;             /* trace: row */
    double rate_factor;             /* SIM_EVENT_RATE */
    double rate_max;                /* highest rate that a thinned process reaches, per ns, without the factor */
    uint32_t state;                 /* MMPP, on/off */
    struct rng arrivals, demands, clients, split;
    struct sim_config config;       /* its arrays are the source's own copies */
};

/* A flow as it arrives. */
struct arrival {
    double work_ns;
    uint64_t key;
    uint32_t balancer;
};

/* 0, -EINVAL, -ENOMEM. */
int source_init(struct source *s, const struct sim_config *config);
void source_free(struct source *s);
/* To be called at next_ns: true, a flow arrives and *a is filled; false, the process only changed its state. */
bool source_take(struct source *s, struct arrival *a);
void source_set_rate(struct source *s, uint64_t now_ns, double factor);

#endif
