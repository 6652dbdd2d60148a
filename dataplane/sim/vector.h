/* Many simulations stepped together, for learning: one call publishes every balancer's directive, runs every replica for one
 * control interval, and reads what a policy may see - the 11 features - and what a reward needs, into the caller's arrays.
 *
 * Rows are balancers: row r * n_balancers + b is balancer b of replica r. A balancer has a segment of its own and is its only
 * worker. Directives go the same way as a live controller's: a payload, published and adopted with all checks.
 */
#ifndef VICKREY_SIM_VECTOR_H
#define VICKREY_SIM_VECTOR_H

#include "sim.h"

/* cdef:begin */
#define VECTOR_FEATURES 11
#define VECTOR_COUNTERS 4
#define VECTOR_TRUTHS 6

/* How a row's directive is made. */
enum vector_mode {
    VECTOR_CURVES = 0,              /* rule bids: the row's base curves, corrected */
    VECTOR_BIDS = 1,                /* rule bids: (slope * n + constant) / weight; weight 0 bids last */
    VECTOR_ALIAS = 2,               /* rule alias: weights */
    VECTOR_WRR = 3                  /* rule wrr: weights */
};

struct vector_config {
    uint32_t n_replicas;
    uint32_t n_balancers;           /* of each replica */
    uint32_t n_servers;             /* rows' width; a world may have fewer servers, the rest is absent */
    uint32_t reservoir_slots;       /* of all segments */
    double   half_life_ns;          /* of the decayed features */
    double   prior_s;               /* of features of which nothing is known */
    double   slope, constant;       /* of VECTOR_BIDS */
};

/* The caller's arrays, C order; rows = n_replicas * n_balancers. */
struct vector_arrays {
    const uint8_t *run;             /* [replicas] 0: leave it as it is, and its outputs too */
    const uint8_t *mode;            /* [rows] enum vector_mode */
    const float   *base;            /* [rows][servers][CURVE_POINTS] */
    const double  *correction;      /* [rows][2 + 2 * servers], see curves_correct() */
    const double  *weights;         /* [rows][servers] */
    float    *features;             /* [rows][servers][VECTOR_FEATURES] columns as shm_layout.features.FEATURES */
    uint8_t  *active;               /* [rows][servers] 1: may take new flows */
    double   *counters;             /* [rows][servers][VECTOR_COUNTERS] flows, completions, their summed FCT in seconds, failures;
                                     * cumulative since the slot was taken */
    double   *truth;                /* [replicas][servers][VECTOR_TRUTHS] in server, busy, workers, speed (0: dead), and, so far,
                                     * worker-seconds busy and worker-seconds there */
    uint64_t *histogram;            /* [rows][HISTOGRAM_BUCKETS] FCTs, cumulative, all servers; or NULL */
    uint64_t *settings_version;     /* [rows] in force */
    uint64_t *now_ns;               /* [replicas] since the start */
    uint8_t  *finished;             /* [replicas] the world has come to its end */
};

struct vector;

/* NULL: out of memory, or sizes out of range. */
struct vector *vector_create(const struct vector_config *config);
void vector_destroy(struct vector *v);

/* Put a simulation, which stays the caller's, in a replica's place; NULL: none. 0 or -EINVAL: another number of balancers or more
 * servers than configured, or balancers that share a segment. Its segments' controller is the caller. */
int vector_place(struct vector *v, uint32_t replica, struct sim *sim);

/* Run the replicas that a->run names for interval_ns; 0: publish nothing, only read. 0, or what sim_run() or publishing
 * returned; *failed is then the replica, and those after it have not run. */
int vector_step(struct vector *v, const struct vector_arrays *a, uint64_t interval_ns, uint32_t *failed);

/* Correct bid curves [n][CURVE_POINTS] of n servers:
 *     out_i(q) = e^-m_i (base_i(q e^(s - k_i)) + (e^c - 1) base_i(0))
 * with correction s, c, m_0, k_0, m_1, k_1, …: the server is e^m times as fast as base says and bears e^k times as many flows;
 * e^s flows are there for each one seen; e^c weighs an idle server's bid. Zero changes no bit. */
void curves_correct(const float *base, const double *correction, uint32_t n, float *out);
/* cdef:end */

#endif
