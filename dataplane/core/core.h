/* The balancing core: which server takes a flow, and what is remembered of it.
 *
 * One struct balancer per worker, over one segment. The socket engine, the packet engine and the simulator call exactly this.
 *
 * Always: time is passed in (now_ns); no clock, no I/O, no descriptor, no lock, and no allocation after balancer_create().
 *         Randomness comes from the balancer's own generator, seeded by the caller: the same calls give the same choices.
 */
#ifndef VICKREY_CORE_H
#define VICKREY_CORE_H

#include "../../shm_layout/segment.h"
#include <stdbool.h>

/* cdef:begin  structs and plain prototypes only: cffi reads this part too */
/* What is known of a flow when it is dispatched. */
struct flow_key {
    uint64_t hash;                  /* of what keeps a flow in its place (client address and port, say): rule maglev */
    float    load;                  /* estimated load: rule classic. Below 0: the directive's for this route */
    uint32_t route;                 /* 0: none of the settings' */
    uint32_t sla;                   /* enum sla_class */
    uint32_t waiting;               /* flows that wait before this one, over all workers */
    uint32_t queued[3];             /* of a flow that did not wait yet, those of each class: what one of them would take is not for it */
    uint32_t unheld;                /* 1: the reserve does not hold it (it has waited once, and its server failed it, say) */
    uint32_t avoid;                 /* a server that just failed this flow, or NO_SERVER */
    uint32_t n_failed;              /* servers that failed it before that one … */
    uint32_t failed[3];             /* … looked at only when avoid is one */
};

/* Why a flow is held. */
enum held {
    HELD_NOT = 0,
    HELD_DEAR = 1,                  /* the lowest bid is above the reserve */
    HELD_YIELDS = 2,                /* it is not, but one that waits before this newcomer is to have that server */
};

/* The auction's result. server is NO_SERVER when nobody may take the flow. */
struct award {
    uint32_t server;                /* slot */
    uint32_t full;                  /* with NO_SERVER: 1, somebody is up but at its maxconn, or held: wait; 0, nobody is up */
    uint32_t held;                  /* with full: enum held, bid and price say what they were */
    uint32_t rule;                  /* enum rule_id that decided */
    uint32_t above_reserve;         /* classic: flagged */
    uint32_t handoff;               /* classic: given to a partner of the winner's coalition */
    uint32_t winner;                /* slot whose bid this is: the server's, but with a hand-off */
    float    load;                  /* of the flow, as the auction took it: give it to flow_open() */
    float    bid;                   /* 0 where the rule has none */
    float    price;                 /* second-lowest bid; INFINITY when nobody else bid */
    float    idle_bid;              /* with held: what that server bids when it is idle, which says who of those that wait it is for */
};

/* One open flow, embedded in whatever the engine keeps of it. All fields are the core's, read-only outside. */
struct flow {
    struct flow *next, *prev;       /* the server's open flows of this worker */
    uint64_t opened_ns;             /* first byte seen: FCT counts from here */
    uint64_t assigned_ns;           /* given to the server */
    uint64_t server_id;
    uint32_t server;                /* slot; NO_SERVER: not open */
    uint32_t found;                 /* flows in flight on the server when it came */
    float    load;
    uint32_t reserved;
};

struct balancer;                    /* private to the core */

/* Bytes of memory that a balancer for this segment needs, and its making in that memory (64-byte aligned, zeroed).
 * worker: index below the segment's max_workers. Zeroes this worker's stats in the segment. Returns NULL on bad arguments. */
size_t balancer_size(const void *segment);
struct balancer *balancer_create(void *memory, void *segment, uint32_t worker, uint64_t seed, uint64_t now_ns);

/* To be called once by the first worker of a fresh data plane before any worker runs: in-flight words back to zero. */
void balancer_repair(void *segment, uint64_t now_ns);

/* Adopt newer settings and directive, watch the controller's age, beat. Call it between batches, at least every 100 ms; costs
 * a few loads when nothing changed. Returns true when the settings changed (the engine rereads them). */
bool balancer_refresh(struct balancer *b, uint64_t now_ns);

/* Settings in force (the core's private copy), valid until the next refresh; and the server entry of a slot. */
const struct settings *balancer_settings(const struct balancer *b);
const struct server_entry *balancer_server(const struct balancer *b, uint32_t server);
/* This worker's own block in the segment, for the engine's counters, and its stats of a server. */
struct worker *balancer_worker(struct balancer *b);
struct server_stats *balancer_stats(struct balancer *b, uint32_t server);
/* Flows in flight on a server now, over all workers. */
uint32_t balancer_in_flight(const struct balancer *b, uint32_t server);
/* May this server be given (or, backup: keep) a flow: not free, not maint, up. */
bool balancer_is_up(const struct balancer *b, uint32_t server);

/* Hold the auction (or draw the lottery) and account for it. */
struct award balancer_dispatch(struct balancer *b, const struct flow_key *key, uint64_t now_ns);

/* The least number of flows waiting before one of this class at which the reserve does not hold it from this bid; UINT32_MAX: none. */
uint32_t balancer_waiting_for(const struct balancer *b, uint32_t sla, float bid);

/* The flow goes to award.server: in flight from now on. opened_ns: when its first byte was seen. */
void flow_open(struct balancer *b, struct flow *f, uint32_t server, float load, uint64_t opened_ns, uint64_t now_ns);
/* The flow ends: leaves the in-flight count; outcome feeds counters, profile, histogram and reservoirs as the enum says.
 * bytes_in: client to server. Does nothing when the flow is not open. */
void flow_close(struct balancer *b, struct flow *f, uint64_t now_ns, uint64_t bytes_in, uint64_t bytes_out, enum outcome outcome);
/* The flow leaves this server to be tried on another (connect failed): counted as outcome, without a sample. */
void flow_retry(struct balancer *b, struct flow *f, uint64_t now_ns, enum outcome outcome);

/* Take samples of the durations of open flows: call it every 50 ms. */
void balancer_sample(struct balancer *b, uint64_t now_ns);

/* Append a flow record to this worker's ring; sequence is filled in. The target may be longer than fits. */
void balancer_record(struct balancer *b, struct flow_record *r, const char *target, size_t target_bytes);

/* Tables, also called from the control plane. weights: n values >= 0, finite, sum > 0.
 * maglev_build: Eisenbud et al., NSDI 2016, section 3.4, weighted; ids name the servers, table has size entries (a prime).
 * alias_build: Vose, IEEE TSE 17(9), 1991. Both return 0 or -EINVAL. scratch: maglev_scratch(n) bytes,
 * and 3 n entries for alias_build. */
int maglev_build(const float *weights, const uint64_t *ids, uint32_t n, uint32_t *table, uint32_t size, void *scratch);
size_t maglev_scratch(uint32_t n);
int alias_build(const float *weights, uint32_t n, uint32_t *keep, uint32_t *other, uint32_t *scratch);
/* cdef:end */

#endif
