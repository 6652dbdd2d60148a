/* A drill: many flows through the core in one call. */
#include "drill.h"
#include "rng.h"

uint64_t drill_dispatch(struct balancer *b, uint64_t cycles, uint64_t hash, uint64_t now_ns, uint64_t *won)
{
    struct flow_key key = { .load = 1.0f, .avoid = NO_SERVER };
    uint64_t found = 0;
    for (uint64_t i = 0; i < cycles; i++) {
        key.hash = rng_mix(hash + i);
        struct award award = balancer_dispatch(b, &key, now_ns);
        if (award.server == NO_SERVER)
            continue;
        found++;
        won[award.server]++;
    }
    return found;
}

uint64_t drill_flows(struct balancer *b, struct flow *flows, uint32_t n_flows, uint64_t cycles, uint64_t gap_ns, uint64_t now_ns)
{
    struct flow_key key = { .load = 1.0f, .avoid = NO_SERVER };
    for (uint64_t i = 0; i < cycles; i++, now_ns += gap_ns) {
        struct flow *f = &flows[i % n_flows];
        flow_close(b, f, now_ns, 100, 1000, OUTCOME_OK);
        key.hash = rng_mix(now_ns);
        struct award award = balancer_dispatch(b, &key, now_ns);
        if (award.server != NO_SERVER)
            flow_open(b, f, award.server, key.load, now_ns, now_ns);
    }
    return now_ns;
}
