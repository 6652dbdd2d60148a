/* Garbage in the segment: a balancer goes on, whatever is written there, and never leaves its memory.
 *
 * Rounds of damage (bytes flipped anywhere, blocks published with a right CRC and wrong contents, words and journals set to
 * anything) between ordinary work. Runs under AddressSanitizer and UndefinedBehaviorSanitizer, which end it at a fault; here it
 * is checked that awards name servers that may take flows. Arguments: seed, rounds.
 */
#include "dataplane/core/core_private.h"
#include "shm_layout/access.h"

#include <stdio.h>
#include <stdlib.h>

#define SERVERS 24u
#define WORKERS 3u
#define TABLE 251u
#define FLOWS 64u
#define SECOND 1000000000ULL

static struct rng rng;
static uint8_t *segment, *pristine;
static uint64_t size_bytes, now_ns = 5 * SECOND;
static union { struct settings head; uint64_t words[1024 + 32 * SERVERS]; } settings;
static union { struct directive head; uint64_t words[512 + 64 * SERVERS + TABLE]; } directive;
static uint64_t settings_bytes, directive_bytes, versions, decided, taken, refused;

static uint32_t below(uint32_t n)
{
    return rng_below(&rng, n);
}

/* A number that is likely to hurt. */
static uint64_t nasty(void)
{
    static const uint64_t list[] = { 0, 1, 63, 64, 255, 4096, 65535, 65536, 0x7f800000, 0x7fc00000, 0x80000000, 0xbf800000,
                                     UINT32_MAX, 1ULL << 32, 1ULL << 62, 1ULL << 63, UINT64_MAX };
    return below(3) ? list[below(sizeof list / sizeof *list)] : rng_next(&rng);
}

static void make_settings(void)
{
    memset(&settings, 0, sizeof settings);
    struct settings *s = &settings.head;
    s->version = ++versions;
    s->n_slots = below(8) ? SERVERS : below(SERVERS + 1);
    s->fallback_rule = below(RULES);
    s->fallback_curve = below(3);
    s->fallback_choices = below(4);
    s->sample_durations = below(5);
    s->log_targets = below(2);
    s->stale_after_ns = below(4) ? 0 : SECOND;
    struct server_entry *e = (struct server_entry *)(void *)(s + 1);
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (below(10) == 0)
            continue;
        e[i].id = below(10) ? i + 1 : rng_next(&rng) | 1u;
        e[i].state = below(6) ? SERVER_READY : 1 + below(3);
        e[i].health = below(6) ? HEALTH_UP : below(3);
        e[i].weight = below(6) ? 1 + below(256) : 0;
        e[i].maxconn = below(3) ? 0 : below(5);
        e[i].backup = below(8) == 0;
        e[i].slowstart_begin_ns = below(4) ? 0 : now_ns;
        e[i].slowstart_ns = below(3) * SECOND;
    }
    settings_bytes = sizeof *s + s->n_slots * sizeof *e;
}

static void *array(uint64_t *offset, uint64_t bytes)
{
    *offset = directive_bytes;
    directive_bytes += (bytes + 7u) & ~7ULL;
    return (uint8_t *)&directive + *offset;
}

static void make_directive(uint64_t epoch)
{
    memset(&directive, 0, sizeof directive);
    struct directive *d = &directive.head;
    directive_bytes = sizeof *d;
    d->sequence = ++versions;
    d->issued_ns = now_ns;
    d->epoch = epoch;
    d->rule = below(RULES);
    uint32_t n = d->n_servers = below(6) ? SERVERS : 1 + below(SERVERS);
    d->choices = below(3) ? 0 : below(6);
    d->enforcing_percent = below(3) ? 100 : below(101);
    d->classic_noise = (float)below(2);
    uint64_t *ids = array(&d->off_ids, n * 8u);
    float *weights = array(&d->off_weights, n * 4u), *curves = array(&d->off_curves, n * CURVE_POINTS * 4u);
    uint32_t *keep = array(&d->off_alias_keep, n * 4u), *other = array(&d->off_alias_other, n * 4u);
    struct classic_server *classic = array(&d->off_classic, n * sizeof *classic);
    uint32_t *table = array(&d->off_table, TABLE * 4u);
    d->table_slots = TABLE;
    float *reserve = array(&d->off_reserve, CURVE_POINTS * 4u);
    for (uint32_t p = 0; p < CURVE_POINTS; p++)
        reserve[p] = (p ? reserve[p - 1] : 0) + (float)below(3);
    d->n_routes = 1 + below(ROUTES_MAX);
    float *loads = array(&d->off_loads, d->n_routes * SLA_CLASSES * 4u);
    for (uint32_t r = 0; r < d->n_routes * SLA_CLASSES; r++)
        loads[r] = 0.5f + (float)below(9);
    for (uint32_t c = 0; c < SLA_CLASSES; c++)
        d->sla_reserve[c] = (float)below(3);
    if (below(3) == 0 || d->rule == RULE_MAGLEV || d->rule == RULE_ALIAS || d->rule == RULE_WRR)
        d->off_reserve = 0;
    if (below(3) == 0)
        d->off_loads = d->n_routes = 0;
    struct aging *aging = array(&d->off_aging, n * sizeof *aging);
    if (below(3) == 0)
        d->off_aging = 0;
    for (uint32_t i = 0; i < n; i++) {
        aging[i] = (struct aging){ (float)below(4), (float)below(3) };
        ids[i] = below(20) ? i + 1 : 0;
        weights[i] = (float)(below(5) ? below(1000) : 0) + (i == 0);
        for (uint32_t p = 0; p < CURVE_POINTS; p++)
            curves[i * CURVE_POINTS + p] = (p ? curves[i * CURVE_POINTS + p - 1] : 0) + (float)below(3);
        keep[i] = (uint32_t)rng_next(&rng);
        other[i] = below(n);
        classic[i] = (struct classic_server){ 1.0f + (float)below(99), 1, 0.5f, 0.5f, 1, 0, 1, 0 };
    }
    for (uint32_t i = 0; i < TABLE; i++)
        table[i] = below(n);
    if (below(3) == 0)
        d->off_weights = 0;
    directive_bytes = (directive_bytes + 7u) & ~7ULL;
}

/* Spoil some words or halves of words of a payload. */
static void spoil(uint64_t *words, uint64_t bytes)
{
    for (uint32_t times = below(4); times; times--) {
        uint64_t at = below(2) ? below((uint32_t)(bytes / 8u)) : below(32), bad = nasty();
        memcpy((uint8_t *)&words[at] + 4 * below(2), &bad, 4);
    }
}

static void damage(void)
{
    const struct segment_header *h = (const struct segment_header *)(const void *)pristine;
    struct controller *controller = (struct controller *)(void *)(segment + h->off_controller);
    switch (below(9)) {
    case 0: /* bytes anywhere, the header among them */
        for (uint32_t times = 1 + below(50); times; times--)
            segment[rng_next(&rng) % size_bytes] ^= (uint8_t)(1u << below(8));
        break;
    case 1: /* whole words of what readers believe: blocks, controller, words, workers */
        for (uint32_t times = 1 + below(20); times; times--) {
            uint64_t bad = nasty();
            memcpy(segment + 8u * (rng_next(&rng) % (h->off_stats / 8u)), &bad, 8);
        }
        break;
    case 2: /* the journals of the others run wild */
        for (uint32_t times = 1 + below(20); times; times--) {
            uint64_t bad = nasty();
            memcpy(segment + segment_journal_offset(h, below(WORKERS)) + 4u * below(h->journal_slots), &bad, 4);
            struct worker *w = (struct worker *)(void *)(segment + segment_worker_offset(h, 1 + below(WORKERS - 1)));
            w->journal_head = below(2) ? w->journal_head + below(100) : nasty();
            w->started_ns = 1;
            w->heartbeat_ns = now_ns;
        }
        break;
    case 3:
        memcpy(segment, pristine, h->off_directive); /* header and settings block whole again */
        break;
    case 4:
    case 5:
        make_settings();
        if (below(2))
            spoil(settings.words, settings_bytes);
        segment_publish(segment, h->off_settings, &settings, settings_bytes, 1);
        break;
    default:
        make_directive(controller->epoch);
        if (below(2))
            spoil(directive.words, directive_bytes);
        segment_publish(segment, h->off_directive, &directive, directive_bytes, directive.head.epoch);
        controller->heartbeat_ns = now_ns;
    }
}

static void check(const struct balancer *b, const struct award *award)
{
    if (award->server == NO_SERVER)
        return;
    const struct server_entry *e = balancer_server(b, award->server);
    if (award->server >= SERVERS || e->id == 0 || e->state != SERVER_READY || e->health != HEALTH_UP || e->weight == 0 ||
        !(award->bid >= 0.0f) || !(award->price >= award->bid)) {
        fprintf(stderr, "award: server %u, bid %g, price %g\n", award->server, (double)award->bid, (double)award->price);
        exit(1);
    }
}

static void work(struct balancer *b, struct flow *flows)
{
    for (uint32_t times = below(20); times; times--) {
        struct flow *f = &flows[below(FLOWS)];
        struct flow_key key = { .hash = rng_next(&rng), .load = (float)below(5), .avoid = below(3) ? NO_SERVER : below(SERVERS + 2),
                                .route = below(4) ? below(40) : (uint32_t)nasty(), .sla = below(4) ? below(3) : (uint32_t)nasty(),
                                .waiting = below(4) ? below(100) : (uint32_t)nasty(), .unheld = below(4) == 0 };
        balancer_waiting_for(b, key.sla, (float)below(99));
        if (below(3) == 0)
            key.load = -1.0f;
        now_ns += below(1000000);
        if (below(4) == 0)
            flow_retry(b, f, now_ns, (enum outcome)below(OUTCOMES));
        else
            flow_close(b, f, now_ns, below(100), below(100), (enum outcome)below(OUTCOMES));
        struct award award = balancer_dispatch(b, &key, now_ns);
        check(b, &award);
        decided += award.server != NO_SERVER;
        if (award.server != NO_SERVER)
            flow_open(b, f, award.server, award.load, now_ns, now_ns);
        balancer_in_flight(b, below(SERVERS));
    }
    struct flow_record r = { .server_id = 1 };
    balancer_record(b, &r, "/target", below(8));
    balancer_sample(b, now_ns);
}

int main(int argc, char **argv)
{
    rng_seed(&rng, argc > 1 ? strtoull(argv[1], NULL, 10) : 1);
    uint64_t rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;
    struct segment_limits limits = { SERVERS, WORKERS, 16, 64, 64, TABLE };
    size_bytes = (uint64_t)segment_size(&limits);
    segment = aligned_alloc(64, size_bytes);
    pristine = malloc(size_bytes);
    if (!segment || !pristine)
        return 2;
    memset(segment, 0, size_bytes);
    if (segment_format(segment, size_bytes, &limits, "garbage", 1, now_ns))
        return 2;
    memcpy(pristine, segment, size_bytes);
    size_t bytes = balancer_size(segment);
    void *memory = aligned_alloc(64, bytes);
    if (!memory)
        return 2;
    memset(memory, 0, bytes);
    struct balancer *b = balancer_create(memory, segment, 0, 7, now_ns);
    static struct flow flows[FLOWS];
    for (uint64_t round = 0; round < rounds; round++) {
        damage();
        now_ns += below(10) ? below(100000) : SECOND;
        const void *blocks[] = { b->settings, b->directive };
        uint64_t rejects = 0;
        for (int reason = 0; reason < REJECTS; reason++)
            rejects -= b->me->rejected[reason];
        balancer_refresh(b, now_ns);
        for (int reason = 0; reason < REJECTS; reason++)
            rejects += b->me->rejected[reason];
        refused += rejects;
        taken += (b->settings != blocks[0]) + (b->directive != blocks[1]);
        work(b, flows);
    }
    printf("%lu rounds, %lu decided, %lu blocks taken, %lu refused\n", (unsigned long)rounds, (unsigned long)decided,
           (unsigned long)taken, (unsigned long)refused);
    free(memory);
    free(pristine);
    free(segment);
    return 0;
}
