/* Making a balancer: its memory, its worker's rows in the segment, and repair after a crash; and the accessors.
 *
 * All memory is the caller's, laid out once by carve() for the limits in the segment's header, so that nothing is allocated later
 * and a size is never computed in two places.
 */
#include "../../shm_layout/layout.h"
#include "core_private.h"

/* Hands out pieces of the caller's memory; with base NULL it only counts. */
struct carver {
    uint8_t *base;
    size_t used;
};

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define GAP 64u                     /* between pieces, so that AddressSanitizer sees who leaves his */
#else
#define GAP 0u
#define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

static void *carve(struct carver *c, size_t bytes)
{
    void *piece = c->base ? c->base + c->used : NULL;
    size_t whole = (bytes + 63u) & ~(size_t)63u;
    if (piece)
        ASAN_POISON_MEMORY_REGION(c->base + c->used + bytes, whole - bytes + GAP);
    c->used += whole + GAP;
    return piece;
}

static void carve_book(struct carver *c, struct book *k, size_t n, size_t padded, size_t own_table_slots)
{
    k->key = carve(c, padded * sizeof *k->key);
    k->weight = carve(c, n * sizeof *k->weight);
    k->known = carve(c, n);
    k->curve = carve(c, n * sizeof *k->curve);
    k->scale = carve(c, n * sizeof *k->scale);
    k->keep = carve(c, n * sizeof *k->keep);
    k->other = carve(c, n * sizeof *k->other);
    k->own_table = carve(c, own_table_slots * sizeof *k->own_table);
    k->step = carve(c, padded * sizeof *k->step);
    k->step_full = carve(c, n * sizeof *k->step_full);
    k->credit = carve(c, n * sizeof *k->credit);
    k->classic.base = carve(c, padded * sizeof(float));
    k->classic.factor = carve(c, padded * sizeof(float));
    k->classic.tail = carve(c, padded * sizeof(float));
    k->classic.noise = carve(c, padded * sizeof(float));
    k->classic.ratio = carve(c, padded * sizeof(float));
    k->classic.servers = carve(c, n * sizeof *k->classic.servers);
}

static void carve_all(struct carver *c, struct balancer *b, const struct segment_header *h)
{
    size_t n = h->max_servers, padded = scan_padded(h->max_servers), table = h->table_slots;
    b->table_room = h->table_slots;
    b->settings_room = layout_capacity(h, h->off_settings);
    b->directive_room = layout_capacity(h, h->off_directive);
    b->limit = carve(c, n * sizeof *b->limit);
    b->open = carve(c, n * sizeof(struct flow *));
    b->ready = carve(c, n * sizeof *b->ready);
    carve_book(c, &b->primary, n, padded, 0);
    carve_book(c, &b->fallback, n, padded, table);
    b->ramp = carve(c, n * sizeof *b->ramp);
    b->stamp = carve(c, n * sizeof *b->stamp);
    b->bids = carve(c, padded * sizeof *b->bids);
    size_t scratch = maglev_scratch(h->max_servers), alias_scratch = 3 * n * sizeof(uint32_t);
    b->scratch = carve(c, scratch > alias_scratch ? scratch : alias_scratch);
    b->settings = carve(c, b->settings_room);
    b->settings_spare = carve(c, b->settings_room);
    b->directive = carve(c, b->directive_room);
    b->directive_spare = carve(c, b->directive_room);
}

static bool limits_are_sane(const struct segment_header *h)
{
    return h->max_servers >= 1 && h->max_servers <= SERVERS_LIMIT && h->max_workers >= 1 && h->max_workers <= WORKERS_LIMIT &&
           h->ring_slots && !(h->ring_slots & (h->ring_slots - 1)) && h->journal_slots &&
           !(h->journal_slots & (h->journal_slots - 1)) && h->reservoir_slots && h->table_slots <= 1048576;
}

size_t balancer_size(const void *segment)
{
    struct segment_header h;
    memcpy(&h, segment, sizeof h);
    struct balancer b;
    struct carver c = { .used = 0 };
    carve(&c, sizeof b);
    carve_all(&c, &b, &h);
    return c.used;
}

/* This worker's rows start from zero. A worker block that was never started says that the rows were never written: then they
 * are left alone, so that a large segment's pages are touched only when they are used. */
static void zero_rows(struct balancer *b)
{
    if (LOAD(b->me->started_ns)) {
        for (uint32_t i = 0; i < b->max_servers; i++) {
            uint64_t *row = (uint64_t *)(void *)&b->stats[i];
            for (size_t word = 0; word < sizeof(struct server_stats) / 8u; word++)
                word_store(&row[word], 0);
            reservoir_reset(b, i, 0);
        }
    }
    /* The ring and the journal go on where the worker's predecessor stopped: their readers' cursors stay right. */
    uint64_t ring_head = LOAD(b->me->ring_head), journal_head = LOAD(b->me->journal_head);
    uint64_t *me = (uint64_t *)(void *)b->me;
    for (size_t word = 0; word < sizeof(struct worker) / 8u; word++)
        word_store(&me[word], 0);
    word_store(&b->me->ring_head, ring_head);
    word_store(&b->me->journal_head, journal_head);
}

struct balancer *balancer_create(void *memory, void *segment, uint32_t worker, uint64_t seed, uint64_t now_ns)
{
    struct segment_header header, *h = &header;
    if (!memory || !segment || ((uintptr_t)memory & 63u))
        return NULL;
    memcpy(h, segment, sizeof *h);
    if (!limits_are_sane(h) || worker >= h->max_workers)
        return NULL;
    struct carver c = { .base = memory };
    struct balancer *b = carve(&c, sizeof *b);
    carve_all(&c, b, h);
    uint8_t *base = segment;
    b->segment = base;
    b->max_servers = h->max_servers;
    b->max_workers = h->max_workers;
    b->worker = worker;
    b->alone = h->max_workers == 1;
    b->off_settings = h->off_settings;
    b->off_directive = h->off_directive;
    b->controller = (const struct controller *)(void *)(base + h->off_controller);
    b->words = (struct server_word *)(void *)(base + segment_word_offset(h, 0));
    b->me = (struct worker *)(void *)(base + segment_worker_offset(h, worker));
    b->all_stats = (struct server_stats *)(void *)(base + h->off_stats);
    b->stats = b->all_stats + (size_t)worker * h->max_servers;
    b->reservoir_stride = h->reservoir_stride;
    b->reservoir_slots = h->reservoir_slots;
    b->reservoirs = base + segment_reservoir_offset(h, worker, 0, 0);
    b->ring = (struct flow_record *)(void *)(base + segment_ring_offset(h, worker));
    b->ring_mask = h->ring_slots - 1u;
    b->journal = (uint32_t *)(void *)(base + segment_journal_offset(h, worker));
    b->journal_mask = h->journal_slots - 1u;
    for (uint32_t w = 0, n = 0; w < h->max_workers; w++) {
        if (w == worker)
            continue;
        b->peers[n].index = w;
        b->peers[n].worker = (struct worker *)(void *)(base + segment_worker_offset(h, w));
        b->peers[n++].journal = (const uint32_t *)(void *)(base + segment_journal_offset(h, w));
    }
    b->scan = scanner_best();
    b->enforcing_percent = 100;
    b->fallback_active = 1;
    b->primary.rule = b->fallback.rule = &rule_bids;
    b->primary.rule_id = b->fallback.rule_id = RULE_BIDS;
    for (uint32_t i = 0; i < scan_padded(h->max_servers); i++) {
        b->primary.key[i] = b->fallback.key[i] = KEY_NONE;
        b->primary.step[i] = b->fallback.step[i] = 0;
    }
    for (uint32_t i = 0; i < h->max_servers; i++)
        b->ramp[i] = 1.0f;
    rng_seed(&b->rng, seed);
    zero_rows(b);
    STORE(b->me->fallback_active, 1);
    STORE(b->me->heartbeat_ns, now_ns);
    STORE(b->me->started_ns, now_ns ? now_ns : 1);
    balancer_refresh(b, now_ns);
    return b;
}

void balancer_repair(void *segment, uint64_t now_ns)
{
    struct segment_header h;
    memcpy(&h, segment, sizeof h);
    if (!limits_are_sane(&h))
        return;
    uint8_t *base = segment;
    struct server_word *words = (struct server_word *)(void *)(base + h.off_words);
    for (uint32_t i = 0; i < h.max_servers; i++)
        word_store(&words[i].word, (now_ns >> WORD_TIME_SHIFT) & WORD_TIME_MASK);
    /* Workers of the dead data plane that do not come back must not count as in flight, or as alive. */
    for (uint32_t w = 0; w < h.max_workers; w++) {
        struct worker *worker = (struct worker *)(void *)(base + h.off_workers) + w;
        if (!LOAD(worker->started_ns))
            continue;
        struct server_stats *stats = (struct server_stats *)(void *)(base + h.off_stats) + (size_t)w * h.max_servers;
        for (uint32_t i = 0; i < h.max_servers; i++) {
            STORE(stats[i].in_flight, 0);
            double none = 0.0;
            __atomic_store(&stats[i].load_in_flight, &none, __ATOMIC_RELAXED);
        }
        STORE(worker->heartbeat_ns, 0);
        STORE(worker->connections, 0);
        STORE(worker->connections_idle_up, 0);
        STORE(worker->queued, 0);
    }
}

const struct settings *balancer_settings(const struct balancer *b)
{
    return b->settings;
}

const struct server_entry *balancer_server(const struct balancer *b, uint32_t server)
{
    return &entries_of(b->settings)[server];
}

struct worker *balancer_worker(struct balancer *b)
{
    return b->me;
}

struct server_stats *balancer_stats(struct balancer *b, uint32_t server)
{
    return &b->stats[server];
}

uint32_t balancer_in_flight(const struct balancer *b, uint32_t server)
{
    return word_in_flight(b, server);
}

bool balancer_is_up(const struct balancer *b, uint32_t server)
{
    if (server >= b->n_slots)
        return false;
    const struct server_entry *e = &entries_of(b->settings)[server];
    return e->id && (e->state == SERVER_READY || e->state == SERVER_DRAIN) && e->health == HEALTH_UP;
}
