/* A drill: runs the core through many flows in one call, for benchmarks and tests (a call from Python would cost more). */
#ifndef VICKREY_DRILL_H
#define VICKREY_DRILL_H

#include "core.h"

/* cdef:begin */
/* Award cycles flows without opening any; counts of awards by slot are added to won (max_servers entries). Returns how many
 * found a server. */
uint64_t drill_dispatch(struct balancer *b, uint64_t cycles, uint64_t hash, uint64_t now_ns, uint64_t *won);

/* cycles times: close the oldest of n_flows flows (OUTCOME_OK), award and open one in its place; time passes gap_ns each time.
 * Returns the time at the end. The flows stay open; zeroed flows are not open. */
uint64_t drill_flows(struct balancer *b, struct flow *flows, uint32_t n_flows, uint64_t cycles, uint64_t gap_ns, uint64_t now_ns);
/* cdef:end */

#endif
