/* Every rule makes the same choices under every compiler and optimisation, and on either scan: prints a digest of a long run. */
#include "dataplane/core/core_private.h"
#include "shm_layout/access.h"

#include <stdio.h>
#include <stdlib.h>

#define SERVERS 37u
#define FLOWS 150u
#define CYCLES 4000u

static uint64_t digest;

static void mix_in(uint64_t value)
{
    digest = rng_mix(digest ^ value);
}

static void publish(uint8_t *segment, uint32_t rule, uint64_t sequence)
{
    static union {
        struct directive head;
        uint64_t words[(sizeof(struct directive) + SERVERS * (8 + 4 + 4 * CURVE_POINTS + 8 + sizeof(struct classic_server)) + 4 * 251 + 64) / 8];
    } p;
    static uint32_t scratch[8 * SERVERS];
    uint64_t at = sizeof(struct directive), *offsets[] = {
        &p.head.off_ids, &p.head.off_weights, &p.head.off_curves, &p.head.off_alias_keep, &p.head.off_alias_other,
        &p.head.off_table, &p.head.off_classic
    };
    uint64_t bytes[] = { SERVERS * 8, SERVERS * 4, SERVERS * 4 * CURVE_POINTS, SERVERS * 4, SERVERS * 4, 251 * 4,
                         SERVERS * sizeof(struct classic_server) };
    for (int i = 0; i < 7; i++) {
        *offsets[i] = at;
        at += (bytes[i] + 7u) & ~7ULL;
    }
    struct directive *d = &p.head;
    d->sequence = sequence;
    d->rule = rule;
    d->n_servers = SERVERS;
    d->choices = sequence % 2 ? 0 : 3;
    d->enforcing_percent = 90;
    d->table_slots = 251;
    d->classic_noise = 0.1f;
    uint8_t *base = (uint8_t *)&p;
    uint64_t *ids = (uint64_t *)(void *)(base + d->off_ids);
    float *weights = (float *)(void *)(base + d->off_weights), *curves = (float *)(void *)(base + d->off_curves);
    struct classic_server *classic = (struct classic_server *)(void *)(base + d->off_classic);
    for (uint32_t i = 0; i < SERVERS; i++) {
        ids[i] = i % 11 ? i + 1 : 0; /* some are unknown */
        weights[i] = 1.0f + (float)(i % 7) / 3.0f;
        for (uint32_t n = 0; n < CURVE_POINTS; n++)
            curves[i * CURVE_POINTS + n] = (float)(curve_bin_low(n) + 1) / weights[i];
        classic[i] = (struct classic_server){ 10.0f * weights[i], 1.3f, 0.7f, 0.4f, 1.1f, 0, 1.0f, 0 };
    }
    alias_build(weights, SERVERS, (uint32_t *)(void *)(base + d->off_alias_keep), (uint32_t *)(void *)(base + d->off_alias_other),
                scratch);
    maglev_build(weights, ids, SERVERS, (uint32_t *)(void *)(base + d->off_table), 251, scratch);
    segment_publish(segment, ((struct segment_header *)(void *)segment)->off_directive, &p, at, 0);
}

int main(int argc, char **argv)
{
    (void)argv;
    struct segment_limits limits = { SERVERS, 1, 16, 64, 64, 251 };
    uint64_t size = (uint64_t)segment_size(&limits), now = 1000000;
    uint8_t *segment = aligned_alloc(64, size);
    memset(segment, 0, size);
    segment_format(segment, size, &limits, "choices", 1, now);
    static union { struct settings head; uint64_t words[(sizeof(struct settings) + SERVERS * sizeof(struct server_entry)) / 8]; } s;
    s.head.n_slots = SERVERS;
    s.head.fallback_rule = RULE_WRR;
    struct server_entry *e = (struct server_entry *)(void *)(&s.head + 1);
    for (uint32_t i = 0; i < SERVERS; i++)
        e[i] = (struct server_entry){ .id = i + 1, .state = SERVER_READY, .weight = 1 + i % 3, .maxconn = i % 5 ? 0 : 4,
                                      .slowstart_begin_ns = i == 8 ? now : 0, .slowstart_ns = 1000000000 };
    segment_publish(segment, ((struct segment_header *)(void *)segment)->off_settings, &s, sizeof s, 0);
    size_t bytes = balancer_size(segment);
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    memset(memory, 0, bytes);
    struct balancer *b = balancer_create(memory, segment, 0, 42, now);
    if (argc > 1)
        b->scan = scanner_portable();
    static struct flow flows[FLOWS];
    for (uint32_t round = 0; round < 2 * RULES; round++) {
        publish(segment, round % RULES, round + 1);
        balancer_refresh(b, now);
        for (uint32_t c = 0; c < CYCLES; c++, now += 12345) {
            struct flow *f = &flows[rng_mix(c) % FLOWS];
            flow_close(b, f, now, 1, 1, OUTCOME_OK);
            struct flow_key key = { .hash = rng_mix(c), .load = (float)(c % 9), .avoid = c % 10 ? NO_SERVER : c % SERVERS };
            struct award a = balancer_dispatch(b, &key, now);
            mix_in(a.server);
            mix_in((uint32_t)key_of(a.bid));
            mix_in((uint32_t)key_of(a.price));
            if (a.server != NO_SERVER)
                flow_open(b, f, a.server, key.load, now, now);
            if (c % 100 == 0)
                balancer_sample(b, now);
        }
    }
    uint64_t *stats = (uint64_t *)(void *)b->stats;
    for (uint64_t word = 0; word < SERVERS * sizeof(struct server_stats) / 8; word++)
        mix_in(stats[word]);
    printf("%016lx\n", (unsigned long)digest);
    free(memory);
    free(segment);
    return 0;
}
