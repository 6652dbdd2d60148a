/* What the core's files share: the balancer's memory, the rules' interface, and how its own counters are written.
 *
 * A *book* is what one rule needs to hold an auction: keys, weights, curves, tables. There are two: the primary, made from the
 * directive, and the fallback, made from the settings. Only the books in use follow the changes of in-flight counts.
 *
 * Always: limits and offsets are copied when the balancer is made; nothing read from the segment later is an index before it
 *         was compared with them. Blocks are used from private copies that passed their check.
 */
#ifndef VICKREY_CORE_PRIVATE_H
#define VICKREY_CORE_PRIVATE_H

#include "../../shm_layout/words.h"
#include "core.h"
#include "rng.h"
#include "scan.h"
#include <math.h>
#include <string.h>

/* Raise a counter of this worker's own: readers in other threads and processes see it whole. */
#define COUNT(field, by) __atomic_store_n(&(field), (field) + (by), __ATOMIC_RELAXED)
#define COUNT_DOUBLE(field, by)                                       \
    do {                                                              \
        double sum_ = (field) + (by);                                 \
        __atomic_store(&(field), &sum_, __ATOMIC_RELAXED);            \
    } while (0)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)
#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)

/* The word {n, time}: n above, time below in units of 128 ns. */
#define WORD_TIME_BITS 48
#define WORD_TIME_MASK ((1ULL << WORD_TIME_BITS) - 1u)
#define WORD_TIME_SHIFT 7

#define RAMP_LEAST 0.1f             /* a server in slow start has at least this share of its weight */
#define CHORES_NS 50000000ULL       /* refresh looks after peers and slow starts this often */

struct book;

/* One way to choose. */
struct rule {
    const char *name;
    /* Make the tables: from the directive, or from the settings alone when d is NULL. */
    void (*prepare)(struct balancer *b, struct book *k, const struct directive *d);
    /* Server i has n flows in flight, or its limit or ramp changed: set its key. */
    void (*rekey)(const struct balancer *b, struct book *k, uint32_t i, uint32_t n);
    /* Choose among the servers whose key is not KEY_NONE. */
    struct award (*dispatch)(struct balancer *b, struct book *k, const struct flow_key *key);
};

extern const struct rule rule_maglev, rule_alias, rule_wrr, rule_bids, rule_classic;

/* Make server i's key in a book with aging that of this moment; did it rise? Keys that are older are too low, so whose key is the
 * least and does not rise has won (bids.c). */
struct book;
bool bids_grew(struct balancer *b, struct book *k, uint32_t i, uint64_t now_ns);

/* One server's part in the classic auction: bid = min(((base + load) · factor + noise) · tail, cap). */
struct classic_terms {
    float *base, *factor, *tail;    /* s·ρ, (1 + r·max(0, ρ − t))·neural, 1 + c/200 */
    float *noise;                   /* ε of this auction; zero when there is none */
    float *ratio;                   /* ρ: hand-offs within a coalition */
    struct classic_server *servers;
};

struct book {
    const struct rule *rule;
    uint32_t rule_id;
    uint32_t in_use;                /* its keys follow the in-flight counts */
    uint32_t choices;
    int32_t *key;                   /* of each server; KEY_NONE: may not take a flow */
    float *weight;                  /* share of each server before its ramp: the directive's, or the prior */
    uint8_t *known;                 /* the directive's row of the slot is of this very server */
    /* bids */
    const float **curve;            /* CURVE_POINTS values */
    float *scale;                   /* the bid is the curve's value times this */
    const struct aging *aging;      /* bids that grow with time; NULL: none */
    float prior[CURVE_POINTS];      /* curve of a server that the directive does not know, for weight 1 */
    /* alias */
    uint32_t *keep, *other;
    /* maglev */
    const uint32_t *table;
    uint32_t table_slots;
    uint32_t *own_table;            /* fallback only: table_room entries */
    uint64_t table_made_for;        /* hash of the servers and weights that own_table was built from */
    /* wrr */
    int32_t *step, *step_full;      /* share of a turn now, and without the ramp; they sum to about WRR_TURN */
    int32_t *credit;                /* key of a server that may not take flows, kept for its return */
    int64_t turn;                   /* sum of step */
    /* classic */
    struct classic_terms classic;
    float noise, reserve;
    float coalition_above, coalition_below;
    /* late binding: rules bids and classic */
    const float *held_above;        /* CURVE_POINTS reserves by flows waiting; NULL: no flow is held */
    float sla_reserve[SLA_CLASSES];
    const float *loads;             /* estimated load of a flow, [route][class] */
    uint32_t n_loads;
};

/* Another worker whose journal is followed. */
struct peer {
    struct worker *worker;
    const uint32_t *journal;
    uint64_t cursor;
    uint32_t index;
};

struct balancer {
    /* hot */
    struct server_word *words;
    struct server_stats *stats;     /* this worker's */
    struct worker *me;
    uint32_t *limit;                /* flows in flight at most; 0: takes none */
    struct flow **open;             /* this worker's open flows of each server: circular, at the oldest or the next to be sampled */
    const struct scanner *scan;
    uint32_t n_slots;
    uint32_t padded;                /* n_slots rounded up for the scans */
    uint32_t n_ready;               /* servers that may take flows, full ones included */
    uint32_t *ready;                /* their slots */
    uint32_t n_peers;
    uint32_t alone;                 /* the segment has room for one worker only */
    uint32_t fallback_active;
    uint32_t enforcing_percent;
    struct rng rng;
    struct book primary, fallback;
    /* journals */
    uint32_t *journal;
    uint32_t journal_mask;
    struct peer peers[WORKERS_LIMIT];
    /* reservoirs, ring */
    uint8_t *reservoirs;
    uint64_t reservoir_stride;
    uint32_t reservoir_slots;
    uint32_t ring_mask;
    struct flow_record *ring;
    /* the segment, and limits copied from its header */
    uint8_t *segment;
    const struct controller *controller;
    struct server_stats *all_stats;
    uint64_t off_settings, off_directive;
    uint32_t max_servers, max_workers, worker;
    uint32_t table_room;
    /* blocks in force, and room to read the next */
    uint64_t settings_room, directive_room;
    struct settings *settings, *settings_spare;
    struct directive *directive, *directive_spare;
    uint64_t settings_seen, directive_seen; /* publications looked at */
    uint32_t have_settings, have_directive;
    uint64_t epoch;                 /* of the last directive taken */
    uint64_t chores_due_ns;
    /* scratch */
    float *ramp;                    /* share of its weight that a server in slow start has; 1: all */
    uint32_t n_ramping;
    uint32_t *stamp, stamp_now;     /* servers sampled in this auction */
    int32_t *bids;                  /* classic: keys of this auction */
    void *scratch;
};

static inline const struct server_entry *entries_of(const struct settings *s)
{
    return (const struct server_entry *)(const void *)(s + 1);
}

static inline const void *directive_array(const struct directive *d, uint64_t offset)
{
    return (const uint8_t *)d + offset;
}

static inline uint32_t word_in_flight(const struct balancer *b, uint32_t i)
{
    return (uint32_t)(word_load(&b->words[i].word) >> WORD_TIME_BITS);
}

/* From when a server's word was last moved until `time`, in its units. */
static inline uint64_t word_elapsed(uint64_t word, uint64_t time)
{
    uint64_t elapsed = (time - word) & WORD_TIME_MASK;
    return elapsed > WORD_TIME_MASK / 2 ? 0 : elapsed;      /* a peer, whose clock was read later, moved it */
}

static inline uint64_t word_time(uint64_t now_ns)
{
    return (now_ns >> WORD_TIME_SHIFT) & WORD_TIME_MASK;
}

/* May server i, with n in flight, take one more? */
static inline bool has_room(const struct balancer *b, uint32_t i, uint32_t n)
{
    return n < b->limit[i];
}

/* Value of a curve at n: exact to 63, linear between the points above and beyond the last. */
static inline float curve_at(const float *curve, uint32_t n)
{
    if (n < CURVE_EXACT)
        return curve[n];
    uint32_t bin = curve_bin(n), left = bin < CURVE_POINTS - 1 ? bin : CURVE_POINTS - 2;
    uint32_t from = curve_bin_low(left), to = curve_bin_low(left + 1);
    return curve[left] + (curve[left + 1] - curve[left]) * ((float)(n - from) / (float)(to - from));
}

/* Estimated load of a flow: what the engine knows, else its route's and class's. */
static inline float flow_load(const struct book *k, const struct flow_key *key)
{
    if (key->load < 0.0f)
        return key->route < k->n_loads && key->sla < SLA_CLASSES ? k->loads[key->route * SLA_CLASSES + key->sla] : 1.0f;
    return key->load >= 0.0f && !isinf(key->load) ? key->load : 0.0f;
}

/* A bid as a key: non-negative floats order as integers do. */
static inline int32_t key_of(float bid)
{
    union { float f; int32_t i; } u = { .f = bid > 0.0f ? (bid < 3.4e38f ? bid : 3.4e38f) : 0.0f };
    return u.i;
}

static inline float bid_of(int32_t key)
{
    union { int32_t i; float f; } u = { .i = key };
    return key == KEY_NONE ? INFINITY : u.f;
}

static inline struct award award_nobody(void)
{
    return (struct award){ .server = NO_SERVER, .price = INFINITY };
}

/* rules' shared parts (share.c) */
void share_weights(const struct balancer *b, struct book *k, const struct directive *d);
void share_rekey(const struct balancer *b, struct book *k, uint32_t i, uint32_t n);
struct award share_draw(struct balancer *b, struct book *k);

/* dispatch.c */
void book_rekey_all(struct balancer *b, struct book *k);
void balancer_follow(struct balancer *b);
/* The lowest of these keys wins, the second-lowest is the price; equal ones draw lots. */
struct award auction(struct balancer *b, const int32_t *key);

/* Server i's count is n now: keys follow. */
static inline void balancer_touch(struct balancer *b, uint32_t i, uint32_t n)
{
    if (b->primary.in_use)
        b->primary.rule->rekey(b, &b->primary, i, n);
    if (b->fallback.in_use)
        b->fallback.rule->rekey(b, &b->fallback, i, n);
}

/* Tell the other workers that server i's word moved. */
static inline void journal_append(struct balancer *b, uint32_t i)
{
    if (b->alone)
        return;
    uint64_t head = b->me->journal_head;
    /* release: a peer that reads this entry sees the head that had room for it, so it can tell that it was overrun */
    __atomic_store_n(&b->journal[head & b->journal_mask], i, __ATOMIC_RELEASE);
    word_release(&b->me->journal_head, head + 1u); /* pairs with the acquire in balancer_follow() */
}

/* reservoir.c: offer one sample of server i. */
void reservoir_add(struct balancer *b, uint32_t i, enum metric metric, uint64_t now_ns, uint64_t value_ns);
void reservoir_reset(struct balancer *b, uint32_t i, uint64_t id);

#endif
