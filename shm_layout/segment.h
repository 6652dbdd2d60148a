/* The shared segment of one service: the only thing data plane and control plane have in common.
 *
 * One POSIX shared memory object, /vickrey.<instance>.<service>, mode 0600. The supervisor creates it; its children attach.
 * Every struct names its one writer. The one word that several threads write, struct server_word, is moved by
 * compare-and-swap. Times are CLOCK_MONOTONIC nanoseconds; the unit stands in each name.
 *
 *     header | settings block | directive block | controller | server words | workers | stats | reservoirs | rings | journals
 *
 * A *block* is what a control process publishes whole: two buffers behind sequence locks, so that a reader never sees a torn
 * one and a writer never waits. Everything else is counters that one thread raises and any process may read.
 *
 * Always: nothing read from here is used as an index before it was bounded by the header that the reader checked at attach.
 */
#ifndef VICKREY_SEGMENT_H
#define VICKREY_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

/* cdef:begin  structs, integer constants and plain prototypes only: cffi reads this part too */
#define LAYOUT_VERSION 3

/* A bid curve and an occupancy profile have the same bins: n = 0 … 63 one each, then four to an octave up to n = 65535. */
#define CURVE_EXACT 64
#define CURVE_POINTS 104
#define IN_FLIGHT_MAX 65535

/* FCT histogram: eight buckets to an octave from 2^10 ns (1 µs) to 2^42 ns (73 min); the ends catch the rest. */
#define HISTOGRAM_BUCKETS 256
#define HISTOGRAM_SHIFT 10

#define SERVERS_LIMIT 4096
#define WORKERS_LIMIT 64
#define NO_SERVER 4294967295

#define NAME_BYTES 64
#define ADDRESS_BYTES 112
#define TARGET_BYTES 128
#define TRUSTED_MAX 16
#define ROUTES_MAX 32
#define PREFIX_BYTES 112
#define HEADER_BYTES 64

enum metric { METRIC_FCT = 0, METRIC_DURATION = 1, METRICS = 2 };

enum rule_id { RULE_MAGLEV = 0, RULE_ALIAS = 1, RULE_WRR = 2, RULE_BIDS = 3, RULE_CLASSIC = 4, RULES = 5 };

enum server_state { SERVER_FREE = 0, SERVER_READY = 1, SERVER_DRAIN = 2, SERVER_MAINT = 3 };

enum server_health { HEALTH_UP = 0, HEALTH_DOWN = 1, HEALTH_EJECTED = 2 };

/* How much a flow's delay matters. The order is that in which they leave the queue. */
enum sla_class { SLA_GOLD = 0, SLA_SILVER = 1, SLA_BRONZE = 2, SLA_CLASSES = 3 };

/* How a flow ended. All but OK and the client's own aborts count against the server. */
enum outcome {
    OUTCOME_OK = 0,
    OUTCOME_SERVER_5XX = 1,       /* answered, status 500 … 599 */
    OUTCOME_CONNECT_FAILED = 2,   /* refused, unreachable or timed out while connecting */
    OUTCOME_SERVER_ABORT = 3,     /* the server closed or broke the protocol before the answer was whole */
    OUTCOME_SERVER_TIMEOUT = 4,   /* censored: its FCT is a lower bound */
    OUTCOME_CLIENT_ABORT = 5,     /* cancelled: no sample of the server's */
    OUTCOME_CLIENT_TIMEOUT = 6,
    OUTCOMES = 7
};

/* Why a block was not taken. */
enum reject {
    REJECT_TORN = 0, REJECT_CRC = 1, REJECT_BOUNDS = 2, REJECT_VALUE = 3, REJECT_EPOCH = 4, REJECT_TABLE = 5, REJECTS = 6
};

/* Errors of the segment functions, returned negative beside -errno; segment_strerror() gives the text. */
enum segment_error {
    SEGMENT_EMAGIC = 1001, SEGMENT_EVERSION = 1002, SEGMENT_EHASH = 1003, SEGMENT_ESIZE = 1004, SEGMENT_ETRUNCATED = 1005,
    SEGMENT_EOWNER = 1006, SEGMENT_ETORN = 1007, SEGMENT_EEMPTY = 1008, SEGMENT_ECRC = 1009, SEGMENT_EBOUNDS = 1010,
    SEGMENT_EVALUE = 1011, SEGMENT_EBOOT = 1012
};

/* Writer: the creator, once; magic is stored last (release), so an attacher that sees it sees the rest. */
struct segment_header {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t header_bytes;          /* sizeof(struct segment_header) */
    uint64_t layout_hash;           /* of this header's text between the cdef marks, comments and blanks folded */
    uint64_t size_bytes;            /* of the whole segment */
    uint8_t  boot_id[16];           /* /proc/sys/kernel/random/boot_id */
    uint64_t owner_pid;
    uint64_t owner_start_ticks;     /* field 22 of /proc/<pid>/stat: a recycled pid is not the owner */
    uint64_t created_ns;
    uint64_t generation;            /* random; differs between two segments of one name */
    uint32_t max_servers;
    uint32_t max_workers;
    uint32_t reservoir_slots;       /* samples per reservoir */
    uint32_t ring_slots;            /* flow records per worker, a power of two */
    uint32_t journal_slots;         /* entries per worker, a power of two */
    uint32_t table_slots;           /* room for the Maglev table, entries */
    uint64_t off_settings;
    uint64_t off_directive;
    uint64_t off_controller;
    uint64_t off_words;
    uint64_t off_workers;
    uint64_t off_stats;
    uint64_t off_reservoirs;
    uint64_t off_rings;
    uint64_t off_journals;
    uint64_t reservoir_stride;      /* bytes from one reservoir to the next */
    uint64_t ring_stride;
    uint64_t journal_stride;
    char     service[NAME_BYTES];   /* ends in NUL */
    uint8_t  reserved[56];
};

/* Head of a block. Writer: the block's one publisher. */
struct block {
    uint64_t latest;                /* index of the newest complete buffer, 0 or 1 */
    uint64_t published;             /* publications so far; 0: nothing yet. Readers poll this */
    uint64_t capacity_bytes;        /* payload bytes that each buffer holds */
    uint64_t off_buffer[2];         /* of the buffers, from the start of the segment */
    uint8_t  reserved[24];
};

/* One of a block's two buffers; the payload follows. Writer: the block's publisher. */
struct block_buffer {
    uint64_t sequence;              /* odd while it is being written */
    uint64_t length_bytes;          /* of the payload, a multiple of 8 */
    uint64_t epoch;                 /* of the writer */
    uint64_t crc;                   /* CRC-32 (zlib's) of the payload, zero-extended */
    uint8_t  reserved[32];
};

/* One server slot. A slot keeps its number for as long as the server is configured; id differs when a slot is reused. */
struct server_entry {
    uint64_t id;                    /* 0: the slot is free */
    uint32_t state;                 /* enum server_state */
    uint32_t health;                /* enum server_health */
    uint32_t weight;                /* 0 … 256; 0: no new flows */
    uint32_t maxconn;               /* flows in flight at most; 0: no limit */
    uint32_t backup;                /* 1: used only when no other server is up */
    uint32_t address_bytes;         /* length of the sockaddr in address */
    uint64_t slowstart_begin_ns;    /* 0: none; else its share ramps from here … */
    uint64_t slowstart_ns;          /* … for this long */
    float    capacity;              /* classic: load in flight at which it counts as full; 0: learned */
    uint32_t coalition;             /* servers of one coalition take over from each other; 0: of none */
    uint8_t  address[ADDRESS_BYTES];/* struct sockaddr_in, _in6 or _un */
    char     name[NAME_BYTES];      /* ends in NUL */
    uint8_t  reserved[24];
};

/* Requests whose target begins with prefix; the longest that fits wins. */
struct route {
    char     prefix[PREFIX_BYTES];  /* prefix_bytes of it count */
    uint32_t prefix_bytes;
    uint32_t sla;                   /* enum sla_class */
    float    load;                  /* estimated load of a flow, in mean flows; 0: learned */
    uint32_t reserved;
};

/* A network. IPv4 is mapped: ::ffff:a.b.c.d, prefix 96 + its own. */
struct cidr {
    uint8_t  address[16];
    uint32_t prefix_bits;           /* 0 … 128 */
    uint32_t reserved;
};

/* Payload of the settings block; n_slots server entries follow. Writer: the supervisor. */
struct settings {
    uint64_t version;               /* raised by one each publication */
    uint32_t n_slots;               /* server slots in use, free ones among them included */
    uint32_t fallback_rule;         /* enum rule_id; with bids: fallback_curve */
    uint32_t fallback_curve;        /* enum fallback_curve */
    uint32_t fallback_choices;      /* bids: servers sampled; 0 = all */
    uint32_t maxconn;               /* client connections over all workers */
    uint32_t queue_slots;           /* waiting flows over all workers */
    uint32_t retries;               /* per flow */
    uint32_t retry_budget_percent;  /* of the flows lately */
    uint32_t sample_durations;      /* open flows sampled a server and tick */
    uint32_t log_targets;           /* 1: flow records carry the request target */
    uint32_t n_trusted;             /* networks in trusted: clients there are proxies, whose X-Forwarded-* is appended to */
    uint32_t accepting;             /* 0: stop accepting, close idle connections, finish the rest */
    uint32_t n_routes;              /* in routes; flows of none of them are of route 0, those of routes[i] of route i + 1 */
    uint32_t sla_default;           /* enum sla_class of flows that neither header nor route put into one */
    uint32_t sla_header_bytes;      /* of sla_header; 0: no header is looked at */
    uint32_t sla_any_client;        /* 1: that header is believed of every client; 0: of the trusted networks' only */
    uint64_t stale_after_ns;        /* age of the controller's last sign of life at which the fallback takes over */
    uint64_t timeout_http_request_ns;
    uint64_t timeout_http_keep_alive_ns;
    uint64_t timeout_connect_ns;
    uint64_t timeout_client_ns;
    uint64_t timeout_server_ns;
    uint64_t timeout_queue_ns;
    uint64_t timeout_tunnel_ns;
    uint64_t drain_deadline_ns;     /* when accepting is 0: connections still open then are closed; 0: none */
    char     sla_header[HEADER_BYTES]; /* name of the request's header that says gold, silver or bronze, in lower case */
    uint8_t  reserved[48];
    struct cidr trusted[TRUSTED_MAX];
    struct route routes[ROUTES_MAX];
};

enum fallback_curve { FALLBACK_LSQ = 0, FALLBACK_SED = 1, FALLBACK_GSED = 2 };

/* The classic rule's parameters of one server. */
struct classic_server {
    float    capacity;              /* > 0 */
    float    sensitivity;           /* >= 0 */
    float    risk_aversion;         /* >= 0 */
    float    target_load_ratio;     /* 0 … 1 */
    float    neural;                /* factor on the adjusted bid: 1 + η, 1 - η or 1 */
    uint32_t coalition;             /* 0: of none */
    float    shapley;               /* >= 0: what it contributes to its coalition; hand-offs draw lots in this ratio */
    uint32_t reserved;
};

/* With `from` flows in flight or more, a bid grows by so many times itself a second since a flow last came or left there. */
struct aging {
    float    from;                  /* >= 0 */
    float    per_second;            /* >= 0; 0: it stays */
};

/* Payload of the directive block. Arrays follow at the offsets given, from the start of the payload; 0: absent.
 * Row i of each is server slot i; a row counts only while id[i] is the slot's id. Writer: the controller. */
struct directive {
    uint64_t sequence;              /* raised by one each publication */
    uint64_t issued_ns;
    uint64_t settings_version;      /* of the server table that it was made for */
    uint64_t epoch;                 /* of the controller */
    char     policy[NAME_BYTES];    /* ends in NUL */
    uint32_t rule;                  /* enum rule_id */
    uint32_t n_servers;             /* rows */
    uint32_t choices;               /* bids: servers sampled for one auction; 0: all bid */
    uint32_t table_slots;           /* entries of the Maglev table */
    uint32_t enforcing_percent;     /* share of the flows that follow it; the others follow the fallback rule */
    float    classic_noise;         /* upper end of the uniform noise ε; 0: none */
    float    classic_reserve;       /* a winner above it is flagged; 0: none */
    uint32_t n_routes;              /* rows in the array of loads */
    uint64_t off_ids;               /* uint64_t[n_servers] */
    uint64_t off_weights;           /* float[n_servers], >= 0, finite, sum > 0 */
    uint64_t off_curves;            /* float[n_servers][CURVE_POINTS], >= 0, finite, never falling: rule bids */
    uint64_t off_alias_keep;        /* uint32_t[n_servers], keep probability in units of 2^-32: rule alias */
    uint64_t off_alias_other;       /* uint32_t[n_servers], server drawn otherwise */
    uint64_t off_table;             /* uint32_t[table_slots], server slots: rule maglev */
    uint64_t off_classic;           /* struct classic_server[n_servers]: rule classic */
    uint64_t off_reserve;           /* float[CURVE_POINTS], >= 0, finite, never falling: with so many flows waiting before it, a flow whose
                                       lowest bid is above this waits too, while a server that it may use has a flow in flight. 0: no flow is held */
    uint64_t off_loads;             /* float[n_routes][SLA_CLASSES], > 0: estimated load of a flow, route 0 first; of other routes 1 */
    float    sla_reserve[SLA_CLASSES]; /* factor on the reserve, by enum sla_class: gold may outbid, bronze is deferred */
    float    coalition_above;       /* classic: a winner with a higher load ratio looks for partners in its coalition … */
    float    coalition_below;       /* … with a lower one than this; 0: no hand-offs */
    uint32_t reserved32;
    uint64_t off_aging;             /* struct aging[n_servers]: bids that grow while a server ends no flow; rule bids, when all bid */
    uint8_t  reserved[24];
};

/* Signs of life. Writer: the controller that holds the segment's lock. */
struct controller {
    uint64_t epoch;                 /* raised by one each time a controller takes the lock */
    uint64_t pid;
    uint64_t heartbeat_ns;          /* each control interval, also when it publishes nothing */
    uint64_t cycles;
    uint64_t cycle_last_ns;         /* duration of the last control cycle */
    uint64_t cycle_max_ns;
    uint64_t late;                  /* decisions dropped because they came too late */
    uint64_t failed;                /* decisions that raised or did not validate */
};

/* Flows in flight on one server over all workers and the time of the last change, in one word: n in the high 16 bits, the time
 * in the low 48, in units of 128 ns (wraps after 417 days). Writers: all workers, by compare-and-swap; the one that moves
 * it charges the elapsed time to its own occupancy profile. */
struct server_word {
    uint64_t word;
    uint8_t  reserved[56];
};

/* One worker. Writer: that worker. */
struct worker {
    uint64_t heartbeat_ns;
    uint64_t started_ns;
    uint64_t settings_version;      /* in force */
    uint64_t directive_sequence;    /* in force */
    uint64_t directive_epoch;
    uint64_t rule;                  /* in force, enum rule_id */
    uint64_t fallback_active;       /* 1: no live controller, the fallback rule dispatches */
    uint64_t fallback_entered;      /* times that it took over */
    uint64_t rejected[REJECTS];     /* blocks not taken, by enum reject */
    uint64_t auctions;              /* dispatches decided */
    uint64_t auctions_fallback;     /* of these by the fallback rule */
    uint64_t auctions_above_reserve;/* classic: winner above the reserve */
    uint64_t no_server_down;        /* nobody may take flows */
    uint64_t no_server_full;        /* all at maxconn: the flow waits */
    uint64_t held;                  /* auctions whose lowest bid was above the reserve: the flow waits */
    uint64_t handoffs;              /* classic: flows that went to a partner of the winner's coalition */
    uint64_t connections_total;
    uint64_t connections;           /* client connections open now */
    uint64_t connections_refused;   /* over the limit */
    uint64_t connections_idle_up;   /* pooled upstream connections */
    uint64_t requests_total;
    uint64_t requests_bad;          /* answered 400, 408, 413, 414, 431, 501 or 505 here */
    uint64_t responses[6];          /* by class: [1] 1xx … [5] 5xx, [0] anything else */
    uint64_t answered_here;         /* 502, 503, 504 made by the balancer */
    uint64_t retries;
    uint64_t retries_denied;        /* budget spent */
    uint64_t queued;                /* flows waiting now */
    uint64_t queue_total;
    uint64_t queue_timeouts;
    uint64_t queue_wait_sum_ns;     /* of the flows that left the queue for a server */
    uint64_t queued_class[SLA_CLASSES];     /* flows waiting now, by enum sla_class */
    uint64_t flows_class[SLA_CLASSES];      /* flows dispatched, by enum sla_class */
    uint64_t waited_class[SLA_CLASSES];     /* of these that had waited */
    uint64_t wait_class_sum_ns[SLA_CLASSES];
    uint64_t bytes_in;              /* from clients */
    uint64_t bytes_out;             /* to clients */
    uint64_t accept_paused;         /* times that accepting paused for want of descriptors */
    uint64_t blocks_exhausted;      /* times that the buffer pool ran out */
    uint64_t backend;               /* 1 io_uring, 2 epoll, 3 simulator */
    uint64_t ring_head;             /* flow records ever written: record k lies in slot k mod ring_slots */
    uint64_t journal_head;          /* journal entries ever written */
    uint64_t reserved[5];
};

/* What one worker saw of one server. Writer: that worker. All cumulative but in_flight and load_in_flight. */
struct server_stats {
    uint64_t id;                    /* of the server that these belong to; the writer zeroes the rest when it changes */
    uint64_t in_flight;             /* this worker's flows open now: repairs the word after a crash */
    double   load_in_flight;        /* sum of the estimated loads of these flows (rule classic) */
    uint64_t flows_total;           /* flows ever opened */
    uint64_t outcomes[OUTCOMES];    /* flows closed, by enum outcome */
    uint64_t failures_in_a_row;     /* 5xx, connect failures, aborts and timeouts since the last good answer */
    uint64_t gateway_failures_in_a_row; /* the same without 5xx that the server answered itself */
    uint64_t fct_sum_ns;            /* over flows closed OK or 5xx */
    uint64_t connect_sum_ns;        /* time to connect, over connections_opened */
    uint64_t connections_opened;    /* upstream connections made */
    uint64_t connections_reused;    /* flows that found a pooled one */
    uint64_t retries;               /* flows sent on elsewhere from here */
    uint64_t bytes_in;              /* client to server */
    uint64_t bytes_out;             /* server to client */
    uint64_t auctions_won;
    double   bid_sum;               /* winning bids */
    double   price_sum;             /* second prices of the auctions won that had one */
    uint64_t priced;                /* auctions won that had a second price */
    double   margin_sum;            /* second price minus winning bid, over these */
    uint64_t last_open_ns;
    uint64_t last_close_ns;
    uint64_t time_ns[CURVE_POINTS];     /* T: time with n in flight, charged by the worker that ended it */
    uint64_t completions[CURVE_POINTS]; /* C: completions from n in flight */
    uint64_t arrivals[CURVE_POINTS];    /* A: flows that found n in flight and completed */
    uint64_t found_fct_ns[CURVE_POINTS];/* F: their summed FCT */
    uint64_t fct_histogram[HISTOGRAM_BUCKETS];
    uint64_t reserved[5];
};

struct sample {
    uint64_t time_ns;               /* when it was taken; 0: empty */
    uint64_t value_ns;
};

/* Head of a reservoir; reservoir_slots samples follow. One per worker, server and metric. Writer: that worker. */
struct reservoir {
    uint64_t sequence;              /* odd while it is being written */
    uint64_t count;                 /* samples ever offered */
    uint64_t id;                    /* of the server */
    uint8_t  reserved[40];
};

/* One finished flow. Writer: the worker whose ring it is in. */
struct flow_record {
    uint64_t sequence;              /* record number + 1, stored last; 0 while it is being written */
    uint64_t opened_ns;             /* first byte of the request seen */
    uint64_t dispatched_ns;         /* server chosen (after any wait in the queue) */
    uint64_t connected_ns;          /* upstream connection ready; = dispatched_ns when it was pooled */
    uint64_t first_byte_ns;         /* first byte of the answer; 0: none */
    uint64_t closed_ns;             /* last byte forwarded */
    uint64_t server_id;
    uint32_t server;                /* slot, or NO_SERVER */
    uint32_t found;                 /* flows in flight on it when this one came */
    uint64_t bytes_in;
    uint64_t bytes_out;
    float    bid;
    float    price;                 /* infinite: nobody else bid */
    uint32_t outcome;               /* enum outcome */
    uint32_t status;                /* HTTP status, 0 in tcp mode */
    uint32_t retries;
    uint32_t rule;
    uint8_t  client[16];            /* IPv6, or IPv4 mapped */
    uint16_t client_port;
    uint8_t  method;                /* enum of the HTTP parser; 0: none */
    uint8_t  termination;           /* letter of HAProxy's first termination state, '-' when normal */
    uint32_t target_bytes;          /* of the target's start that was kept */
    uint64_t directive_sequence;
    char     target[TARGET_BYTES];
    float    load;                  /* estimated, as dispatched */
    uint32_t waiting;               /* flows that waited when it was dispatched */
    uint16_t route;                 /* 0: none of the settings' */
    uint8_t  sla;                   /* enum sla_class */
    uint8_t  handoff;               /* 1: went to a partner of the winner's coalition */
    uint8_t  reserved[44];
};
/* cdef:end */

_Static_assert(sizeof(struct segment_header) == 320, "whole cache lines; a change raises LAYOUT_VERSION");
_Static_assert(sizeof(struct block) == 64, "one cache line");
_Static_assert(sizeof(struct block_buffer) == 64, "one cache line");
_Static_assert(sizeof(struct server_entry) == 256, "whole cache lines");
_Static_assert(sizeof(struct settings) == 4736, "whole cache lines");
_Static_assert(sizeof(struct directive) == 256, "whole cache lines");
_Static_assert(sizeof(struct controller) == 64, "one cache line");
_Static_assert(sizeof(struct server_word) == 64, "one cache line each: written by all workers");
_Static_assert(sizeof(struct worker) % 64 == 0, "no line is written by two workers");
_Static_assert(sizeof(struct server_stats) % 64 == 0, "no line is written by two workers");
_Static_assert(sizeof(struct reservoir) == 64, "one cache line");
_Static_assert(sizeof(struct flow_record) == 320, "whole cache lines");

/* "VICKREY1" read as a big-endian number. */
#define SEGMENT_MAGIC 0x5649434b52455931ULL

/* Bin of n flows in flight, 0 … CURVE_POINTS - 1. */
static inline uint32_t curve_bin(uint32_t n)
{
    if (n < CURVE_EXACT)
        return n;
    if (n > IN_FLIGHT_MAX)
        n = IN_FLIGHT_MAX;
    uint32_t octave = 31u - (uint32_t)__builtin_clz(n) - 6u;
    return CURVE_EXACT + 4u * octave + ((n >> (octave + 4u)) & 3u);
}

/* Least n of a bin. */
static inline uint32_t curve_bin_low(uint32_t bin)
{
    if (bin < CURVE_EXACT)
        return bin;
    uint32_t octave = (bin - CURVE_EXACT) / 4u, quarter = (bin - CURVE_EXACT) % 4u;
    return (4u + quarter) << (octave + 4u);
}

/* Bucket of a duration. */
static inline uint32_t histogram_bucket(uint64_t value_ns)
{
    if (value_ns < (1ULL << HISTOGRAM_SHIFT))
        return 0;
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(value_ns) - HISTOGRAM_SHIFT;
    uint32_t bucket = 8u * octave + (uint32_t)((value_ns >> (octave + HISTOGRAM_SHIFT - 3u)) & 7u);
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1u;
}

/* Least duration of a bucket, ns (bucket 0 also holds all below it). */
static inline uint64_t histogram_bucket_low(uint32_t bucket)
{
    return (8ULL + bucket % 8u) << (bucket / 8u + HISTOGRAM_SHIFT - 3u);
}

/* Where a row of the arrays lies, from the start of the segment. Pass the header that was copied at attach, never the shared one.
 * Rows go by worker first, so that what one worker writes lies together. */
static inline uint64_t segment_word_offset(const struct segment_header *h, uint32_t server)
{
    return h->off_words + (uint64_t)server * sizeof(struct server_word);
}

static inline uint64_t segment_worker_offset(const struct segment_header *h, uint32_t worker)
{
    return h->off_workers + (uint64_t)worker * sizeof(struct worker);
}

static inline uint64_t segment_stats_offset(const struct segment_header *h, uint32_t worker, uint32_t server)
{
    return h->off_stats + ((uint64_t)worker * h->max_servers + server) * sizeof(struct server_stats);
}

/* A reservoir's samples follow its head. */
static inline uint64_t segment_reservoir_offset(const struct segment_header *h, uint32_t worker, uint32_t server, uint32_t metric)
{
    return h->off_reservoirs + (((uint64_t)worker * h->max_servers + server) * METRICS + metric) * h->reservoir_stride;
}

/* struct flow_record[ring_slots] */
static inline uint64_t segment_ring_offset(const struct segment_header *h, uint32_t worker)
{
    return h->off_rings + worker * h->ring_stride;
}

/* uint32_t[journal_slots]: entry k, the slot of a server whose word was moved, lies in slot k mod journal_slots */
static inline uint64_t segment_journal_offset(const struct segment_header *h, uint32_t worker)
{
    return h->off_journals + worker * h->journal_stride;
}

#endif
