/* The simulator: clients, links and servers in simulated time around the balancing core that also serves real traffic.
 *
 * Event-driven and single-threaded. The world (arrivals, demands, links, servers, scheduled events) is here; every choice of a
 * server and every number that a policy sees is made by dataplane/core over ordinary segments. Work is measured in
 * nanoseconds that a server of speed 1 needs for it.
 *
 * Always: the same configuration and seed give the same bytes. The arrivals and their demands depend on the seed and the
 *         schedule alone, never on the policy: two policies meet the same flows (common random numbers).
 */
#ifndef VICKREY_SIM_H
#define VICKREY_SIM_H

#include "../../shm_layout/segment.h"

/* cdef:begin */
enum sim_arrival_kind {
    SIM_POISSON = 0,                /* rate_per_s[0] */
    SIM_SINE = 1,                   /* Poisson, rate_per_s[0] + rate_per_s[1] * sin(2 pi t / phase_ns[0]), zero where negative */
    SIM_MMPP = 2,                   /* Poisson, rate_per_s[s] in state s, which lasts phase_ns[s] on average, exponential */
    SIM_ON_OFF = 3,                 /* Poisson, rate_per_s[0] for exactly phase_ns[0], then rate_per_s[1] for phase_ns[1] */
    SIM_PROFILE = 4,                /* Poisson, profile_per_s[i] for phase_ns[0] each, over and over: a day, say */
    SIM_ARRIVAL_TRACE = 5           /* times_ns */
};

enum sim_demand_kind {
    SIM_EXPONENTIAL = 0,            /* demand[0] mean */
    SIM_DETERMINISTIC = 1,          /* demand[0] */
    SIM_LOGNORMAL = 2,              /* demand[0] mean and demand[1] standard deviation of the logarithm */
    SIM_HYPEREXPONENTIAL = 3,       /* mean demand[1] with probability demand[0], else mean demand[2] */
    SIM_BOUNDED_PARETO = 4,         /* shape demand[0], between demand[1] and demand[2] */
    SIM_DEMAND_TRACE = 5            /* works_ns, over and over */
};

enum sim_split_kind {
    SIM_SPLIT_RANDOM = 0,           /* each flow to any balancer */
    SIM_SPLIT_HASH = 1,             /* by the hash of its client: one client keeps its balancer */
    SIM_SPLIT_TRACE = 2             /* balancers */
};

enum sim_service_kind {
    SIM_FIFO = 0,                   /* one queue, k workers, each of the server's speed */
    SIM_SHARING = 1                 /* processor sharing on k cores: n flows get min(n, k) / n of a core each */
};

enum sim_event_kind {
    SIM_EVENT_SPEED = 0,            /* value: the server's new speed; 0 stops it with its flows */
    SIM_EVENT_CRASH = 1,            /* its flows are lost, new ones refused; the balancers mark it down detect_ns later */
    SIM_EVENT_RECOVER = 2,          /* serves again, empty; marked up detect_ns later */
    SIM_EVENT_JOIN = 3,             /* the slot is configured as ready */
    SIM_EVENT_LEAVE = 4,            /* the slot is freed; its flows finish */
    SIM_EVENT_DRAIN = 5,            /* no new flows */
    SIM_EVENT_WEIGHT = 6,           /* value: configured weight */
    SIM_EVENT_RATE = 7,             /* value: factor on the configured arrival rate (on a trace: its clock's speed) */
    SIM_EVENT_HEALTH = 8,           /* made by the simulator: what was detected; value is an enum server_health */
    SIM_EVENTS = 9
};

/* How a flow of the simulator ended: enum outcome, or one of these. */
enum sim_outcome {
    SIM_REFUSED = 7,                /* no server was up, or the balancer's queue was full */
    SIM_OPEN = 255                  /* not ended yet */
};

struct sim_server {
    uint64_t id;                    /* > 0 */
    uint32_t state;                 /* enum server_state at the start; SERVER_FREE: joins later */
    uint32_t service;               /* enum sim_service_kind */
    uint32_t workers;               /* k >= 1 */
    uint32_t backlog;               /* flows beyond k that it holds; more are answered with an error at once */
    uint32_t weight;                /* as configured at the balancers, 0 … 256 */
    uint32_t maxconn;               /* as configured at the balancers; 0: no limit */
    uint32_t backup;
    uint32_t reserved;
    uint64_t delay_ns;              /* of the link, each way */
    double   speed;                 /* >= 0 */
};

struct sim_balancer {
    void    *segment;               /* formatted; the caller's, and outlives the simulation */
    uint32_t worker;                /* balancers that share a segment are its workers and share one view */
    uint32_t reserved;
};

struct sim_event {
    uint64_t at_ns;                 /* since the start */
    uint32_t kind;                  /* enum sim_event_kind */
    uint32_t server;                /* slot */
    double   value;
};

struct sim_config {
    uint64_t seed;
    uint64_t flows_max;             /* arrivals end after so many; 0: no limit */
    uint64_t records_max;           /* the first so many flows are recorded */
    uint64_t detect_ns;             /* from a crash or recovery until the balancers' health checks have seen it */
    uint64_t sample_ns;             /* the balancers' tick: refresh and duration samples; 0: none */
    uint64_t stale_after_ns;        /* settings.stale_after_ns */
    uint64_t clients;               /* distinct clients, of equal activity; 0: each flow is its own */
    double   gold, bronze;          /* shares of the flows that are of these classes, the rest is silver: see sim_classes() */
    uint32_t n_servers;
    uint32_t n_balancers;
    uint32_t n_events;
    uint32_t retries;               /* of a flow whose server refused to connect */
    uint32_t queue_slots;           /* flows that one balancer holds while servers are at maxconn or too dear */
    uint32_t fallback_rule;         /* enum rule_id, and the settings of that name */
    uint32_t fallback_curve;
    uint32_t fallback_choices;
    uint32_t arrival;               /* enum sim_arrival_kind */
    uint32_t demand;                /* enum sim_demand_kind */
    uint32_t split;                 /* enum sim_split_kind */
    uint32_t rings;                 /* 1: also write the segment's flow records */
    double   rate_per_s[2];
    double   phase_ns[2];
    double   demands[3];
    double   load_per_ns;           /* a flow's load to the classic rule is its work times this; 0: 1 each */
    uint64_t n_profile;             /* lengths of the arrays below; all but records are copied */
    uint64_t n_times;
    uint64_t n_works;
    const double *profile_per_s;
    const uint64_t *times_ns;       /* since the start, never falling */
    const double *works_ns;         /* with a trace of as many arrivals: row by row */
    const uint64_t *keys;           /* n_times hashes of the clients, or NULL */
    const uint32_t *balancers;      /* n_times, or NULL */
    const struct sim_server *servers_array;
    const struct sim_balancer *balancers_array;
    const struct sim_event *events_array;
    struct sim_record *records;     /* records_max of them, the caller's, who keeps them until sim_destroy() */
};

/* One flow. Record i is arrival i. */
struct sim_record {
    uint64_t arrival_ns;            /* since the start, as closed_ns */
    uint64_t closed_ns;             /* its last byte is back at the balancer */
    double   work_ns;
    uint32_t server;                /* slot that it was last given to, or NO_SERVER */
    uint16_t balancer;
    uint8_t  outcome;               /* enum outcome or enum sim_outcome */
    uint8_t  retries;
};

struct sim_totals {
    uint64_t now_ns;                /* since the start */
    uint64_t arrivals;
    uint64_t closed[8];             /* by enum outcome; [SIM_REFUSED] refused by the balancer */
    uint64_t retries;
    uint64_t in_flight;             /* dispatched, not closed */
    uint64_t waiting;               /* held by the balancers */
    uint64_t recorded;
    uint64_t finished;              /* 1: no more arrivals will come and all flows are closed */
    double   fct_sum_ns;            /* over the flows closed OK */
    double   work_sum_ns;           /* of all arrivals */
};

/* The truth about one server, which no policy sees unless an environment shows it. */
struct sim_server_state {
    uint32_t in_server;             /* flows there, waiting ones too */
    uint32_t busy;                  /* of its workers */
    uint32_t alive;
    uint32_t workers;
    double   speed;
    double   busy_ns;               /* worker-nanoseconds spent serving, so far */
    double   capacity_ns;           /* worker-nanoseconds that it was there, crashed or not */
    uint64_t completed;
    uint64_t overflowed;            /* turned away at the backlog limit */
    uint64_t lost;                  /* by crashes */
    uint64_t refused;               /* came while it was dead */
};

struct sim;

/* Make a simulation at time zero. Publishes the settings into every segment. 0, or -EINVAL, -ENOMEM. */
int sim_create(const struct sim_config *config, struct sim **out);
void sim_destroy(struct sim *sim);

/* Run until until_ns (since the start), all events of that instant included, or until everything is finished: returns 1
 * when it is, else 0, or -ENOMEM, or -EDEADLK: told to run for ever, but the flows left can never end. Directives published before the call are in force in it. */
int sim_run(struct sim *sim, uint64_t until_ns);

/* Schedule one more event; a time gone by means now. 0, -EINVAL or -ENOMEM. */
int sim_schedule(struct sim *sim, const struct sim_event *event);

void sim_totals(const struct sim *sim, struct sim_totals *out);
void sim_servers(const struct sim *sim, struct sim_server_state *out);

/* The SLA class (enum sla_class) of each of n flows from number first on: a hash of seed and number, so that classes shift no
 * other draw. */
void sim_classes(uint64_t seed, double gold, double bronze, uint64_t first, uint64_t n, uint8_t *classes);

/* Simulated time zero as the segments see it (their zero means never), and now. */
uint64_t sim_epoch_ns(void);
uint64_t sim_now_ns(const struct sim *sim);

/* References on given arrivals (never falling) and works; fct_ns gets n values. Servers have speeds > 0 and workers >= 1 each.
 * 0, -EINVAL or -ENOMEM. */
/* One queue in front of all; a free worker of the fastest server takes its head. */
int sim_central_queue(const uint64_t *arrivals_ns, const double *works_ns, uint64_t n, const double *speeds,
                      const uint32_t *workers, uint32_t n_servers, double *fct_ns);
/* Knows all sizes: each flow goes where it will be finished first (FIFO servers). */
int sim_least_work_left(const uint64_t *arrivals_ns, const double *works_ns, uint64_t n, const double *speeds,
                        const uint32_t *workers, uint32_t n_servers, double *fct_ns);
/* Floor: one machine of all speed together that serves the flow with least work left, preemptively. */
int sim_pooled_srpt(const uint64_t *arrivals_ns, const double *works_ns, uint64_t n, double speed, double *fct_ns);
/* cdef:end */

_Static_assert(sizeof(struct sim_record) == 32, "two to a cache line");

#endif
