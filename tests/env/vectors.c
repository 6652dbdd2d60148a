/* Steps vectors of replicas through every mode of directive, with resets, absent servers and small reservoirs, and prints a hash of
 * what was read. Built by several compilers and under sanitizers: all must print the same.
 */
#include "dataplane/sim/vector.h"
#include "shm_layout/access.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REPLICAS 3
#define BALANCERS 2
#define WIDTH 6
#define SERVERS 5
#define ROWS (REPLICAS * BALANCERS)
#define STEPS 60

static uint64_t fnv(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3ULL;
    return hash;
}

static void check(int64_t code, const char *what)
{
    if (code < 0) {
        fprintf(stderr, "%s: %s\n", what, segment_strerror((int)code));
        exit(1);
    }
}

static void *make_segment(uint32_t slots)
{
    struct segment_limits limits = { .max_servers = SERVERS, .max_workers = 1, .reservoir_slots = slots, .ring_slots = 64,
                                     .journal_slots = 64, .table_slots = 0 };
    int64_t size = segment_size(&limits);
    check(size, "segment_size");
    void *segment = aligned_alloc(64, ((uint64_t)size + 63) / 64 * 64);
    memset(segment, 0, (uint64_t)size);
    check(segment_format(segment, (uint64_t)size, &limits, "sim", (uint64_t)getpid(), sim_epoch_ns()), "segment_format");
    return segment;
}

struct world {
    void *segments[BALANCERS];
    struct sim *sim;
};

static void begin(struct world *w, struct vector *v, uint32_t replica, uint64_t seed, uint32_t slots)
{
    struct sim_server servers[SERVERS];
    struct sim_balancer balancers[BALANCERS];
    struct sim_event events[] = { { .at_ns = 400000000, .kind = SIM_EVENT_CRASH, .server = 1 },
                                  { .at_ns = 700000000, .kind = SIM_EVENT_JOIN, .server = 4 },
                                  { .at_ns = 900000000, .kind = SIM_EVENT_LEAVE, .server = 2 } };
    memset(servers, 0, sizeof servers);
    memset(balancers, 0, sizeof balancers);
    for (uint32_t i = 0; i < SERVERS; i++)
        servers[i] = (struct sim_server){ .id = i + 1, .state = i == 4 ? SERVER_FREE : SERVER_READY, .workers = 1 + i % 2,
                                          .backlog = UINT32_MAX, .weight = 1, .speed = 1.0 + i };
    for (uint32_t b = 0; b < BALANCERS; b++) {
        w->segments[b] = make_segment(slots);
        balancers[b].segment = w->segments[b];
    }
    struct sim_config c = { .seed = seed, .detect_ns = 100000000, .sample_ns = 50000000, .stale_after_ns = 1ULL << 62,
                            .n_servers = SERVERS, .n_balancers = BALANCERS, .n_events = 3, .retries = 2, .queue_slots = 1000,
                            .fallback_rule = RULE_BIDS, .rate_per_s = { 900.0, 0 }, .demands = { 1e7, 0, 0 },
                            .servers_array = servers, .balancers_array = balancers, .events_array = events };
    check(sim_create(&c, &w->sim), "sim_create");
    for (uint32_t b = 0; b < BALANCERS; b++)
        segment_controller_begin(w->segments[b], (uint64_t)getpid(), sim_epoch_ns());
    check(vector_place(v, replica, w->sim), "vector_place");
}

static void end(struct world *w)
{
    sim_destroy(w->sim);
    for (uint32_t b = 0; b < BALANCERS; b++)
        free(w->segments[b]);
}

int main(void)
{
    static uint8_t run[REPLICAS], mode[ROWS], active[ROWS * WIDTH], finished[REPLICAS];
    static float base[ROWS * WIDTH * CURVE_POINTS], features[ROWS * WIDTH * VECTOR_FEATURES];
    static double correction[ROWS * (2 + 2 * WIDTH)], weights[ROWS * WIDTH], counters[ROWS * WIDTH * VECTOR_COUNTERS];
    static double truth[REPLICAS * WIDTH * VECTOR_TRUTHS];
    static uint64_t histogram[ROWS * HISTOGRAM_BUCKETS], version[ROWS], now[REPLICAS];
    struct vector_arrays a = { .run = run, .mode = mode, .base = base, .correction = correction, .weights = weights,
                               .features = features, .active = active, .counters = counters, .truth = truth,
                               .histogram = histogram, .settings_version = version, .now_ns = now, .finished = finished };
    const uint32_t slots[] = { 1, 3, 16, 128 };
    for (uint32_t s = 0; s < 4; s++) {
        struct vector_config c = { .n_replicas = REPLICAS, .n_balancers = BALANCERS, .n_servers = WIDTH,
                                   .reservoir_slots = slots[s], .half_life_ns = 2e9, .prior_s = 0.1, .slope = 1, .constant = 1 };
        struct vector *v = vector_create(&c);
        if (v == NULL)
            return 1;
        struct world worlds[REPLICAS];
        for (uint32_t r = 0; r < REPLICAS; r++)
            begin(&worlds[r], v, r, 7 + r, slots[s]);
        memset(run, 1, sizeof run);
        uint32_t failed = 0;
        check(vector_step(v, &a, 0, &failed), "vector_step");
        uint64_t hash = 0xcbf29ce484222325ULL;
        for (uint32_t step = 0; step < STEPS; step++) {
            for (uint32_t row = 0; row < ROWS; row++) {
                mode[row] = (uint8_t)((step / 8 + row) % 4);
                for (uint32_t i = 0; i < WIDTH; i++) {
                    weights[row * WIDTH + i] = (step + i) % 5 == 0 ? 0.0 : 1.0 + i;
                    for (uint32_t p = 0; p < CURVE_POINTS; p++)
                        base[(row * WIDTH + i) * CURVE_POINTS + p] = ((float)curve_bin_low(p) + 0.5f) / (1.0f + (float)i);
                }
                for (uint32_t i = 0; i < 2 + 2 * WIDTH; i++)
                    correction[row * (2 + 2 * WIDTH) + i] = ((double)((step * 31 + row * 17 + i * 7) % 21) - 10.0) / 10.0;
            }
            run[1] = step % 3 != 0;
            if (step == 30) {
                end(&worlds[2]);
                begin(&worlds[2], v, 2, 99, slots[s]);
            }
            check(vector_step(v, &a, 30000000, &failed), "vector_step");
            hash = fnv(hash, features, sizeof features);
            hash = fnv(hash, counters, sizeof counters);
            hash = fnv(hash, truth, sizeof truth);
            hash = fnv(hash, active, sizeof active);
            hash = fnv(hash, histogram, sizeof histogram);
        }
        if (vector_place(v, REPLICAS, worlds[0].sim) >= 0 || vector_place(v, 0, NULL) != 0)
            return 1;
        printf("%u slots %016" PRIx64 "\n", slots[s], hash);
        for (uint32_t r = 0; r < REPLICAS; r++)
            end(&worlds[r]);
        vector_destroy(v);
    }
    return 0;
}
