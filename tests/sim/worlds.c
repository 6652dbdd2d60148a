/* Runs a few worlds that between them use everything the simulator has, and prints a hash of each one's flow records.
 *
 * Built by several compilers and under sanitizers: all must print the same.
 */
#include "dataplane/sim/sim.h"
#include "shm_layout/access.h"
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SERVERS 8
#define BALANCERS 3
#define FLOWS 20000

static uint64_t fnv(const void *data, size_t bytes)
{
    uint64_t hash = 0xcbf29ce484222325ULL;
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

static void *make_segment(uint32_t workers)
{
    struct segment_limits limits = { .max_servers = SERVERS, .max_workers = workers, .reservoir_slots = 128, .ring_slots = 64,
                                     .journal_slots = 64, .table_slots = 0 };
    int64_t size = segment_size(&limits);
    check(size, "segment_size");
    void *segment = aligned_alloc(64, ((uint64_t)size + 63) / 64 * 64);
    memset(segment, 0, (uint64_t)size);
    check(segment_format(segment, (uint64_t)size, &limits, "sim", (uint64_t)getpid(), sim_epoch_ns()), "segment_format");
    return segment;
}

/* (n + 1/2) / speed. */
static void publish_bids(void *segment, const struct sim_server *servers)
{
    static struct {
        struct directive head;
        uint64_t ids[SERVERS];
        float curves[SERVERS][CURVE_POINTS];
    } payload;
    struct directive *d = &payload.head;
    d->sequence++;
    d->epoch = segment_controller_begin(segment, (uint64_t)getpid(), sim_epoch_ns());
    d->rule = RULE_BIDS;
    d->n_servers = SERVERS;
    d->enforcing_percent = 100;
    d->off_ids = sizeof payload.head;
    d->off_curves = sizeof payload.head + sizeof payload.ids;
    for (uint32_t i = 0; i < SERVERS; i++) {
        payload.ids[i] = servers[i].id;
        for (uint32_t n = 0; n < CURVE_POINTS; n++)
            payload.curves[i][n] = ((float)curve_bin_low(n) + 0.5f) / (float)servers[i].speed;
    }
    const struct segment_header *h = segment;
    check(segment_publish(segment, h->off_directive, &payload, sizeof payload, d->epoch), "segment_publish");
}

static void run(uint32_t arrival, uint32_t demand, bool shared)
{
    static const double profile[] = { 800, 1600, 400 };
    static const double demands[][3] = {
        [SIM_EXPONENTIAL] = { 1e7 }, [SIM_DETERMINISTIC] = { 1e7 }, [SIM_LOGNORMAL] = { 15.6, 1.0 },
        [SIM_HYPEREXPONENTIAL] = { 0.9, 5e6, 5e7 }, [SIM_BOUNDED_PARETO] = { 1.5, 4e6, 4e9 }, [SIM_DEMAND_TRACE] = { 0 },
    };
    static const double rates[][2] = {
        [SIM_POISSON] = { 1200 }, [SIM_SINE] = { 1000, 800 }, [SIM_MMPP] = { 2000, 500 }, [SIM_ON_OFF] = { 2000, 0 },
        [SIM_PROFILE] = { 0 }, [SIM_ARRIVAL_TRACE] = { 0 },
    };
    static uint64_t times[FLOWS];
    static double works[1000];
    static struct sim_record records[FLOWS];
    memset(records, 0, sizeof records);
    for (uint64_t i = 0; i < FLOWS; i++)
        times[i] = i * 900000 + i * i % 700000;
    for (uint64_t i = 0; i < 1000; i++)
        works[i] = 1e6 + (double)(i * i % 1000) * 2e4;
    struct sim_server servers[SERVERS];
    for (uint32_t i = 0; i < SERVERS; i++) {
        servers[i] = (struct sim_server){
            .id = i + 1, .state = i == 7 ? SERVER_FREE : SERVER_READY, .service = i % 2 ? SIM_SHARING : SIM_FIFO,
            .workers = 1 + i % 4, .backlog = 100, .weight = 1, .maxconn = i == 2 ? 20 : 0, .backup = i == 6,
            .delay_ns = i % 3 * 200000, .speed = 0.5 + 0.25 * i,
        };
    }
    struct sim_event events[] = {
        { 1000000000, SIM_EVENT_SPEED, 1, 0.3 },  { 2000000000, SIM_EVENT_CRASH, 3, 0 }, { 2500000000, SIM_EVENT_JOIN, 7, 0 },
        { 4000000000, SIM_EVENT_RECOVER, 3, 0 },  { 5000000000, SIM_EVENT_RATE, 0, 1.5 }, { 6000000000, SIM_EVENT_LEAVE, 0, 0 },
        { 7000000000, SIM_EVENT_WEIGHT, 2, 0 },   { 8000000000, SIM_EVENT_DRAIN, 5, 0 }, { 8500000000, SIM_EVENT_SPEED, 1, 0.0 },
        { 9000000000, SIM_EVENT_SPEED, 1, 2.0 },
    };
    struct sim_balancer balancers[BALANCERS];
    void *segments[BALANCERS];
    for (uint32_t b = 0; b < BALANCERS; b++) {
        segments[b] = b > 0 && shared ? segments[0] : make_segment(shared ? BALANCERS : 1);
        balancers[b] = (struct sim_balancer){ .segment = segments[b], .worker = shared ? b : 0 };
    }
    struct sim_config config = {
        .seed = 42, .flows_max = FLOWS, .records_max = FLOWS, .records = records, .detect_ns = 300000000, .sample_ns = 50000000,
        .stale_after_ns = 1ULL << 62, .clients = 500, .n_servers = SERVERS, .n_balancers = BALANCERS,
        .n_events = sizeof events / sizeof events[0], .retries = 2, .queue_slots = 1000, .fallback_rule = RULE_BIDS,
        .arrival = arrival, .demand = demand, .split = arrival % 2 ? SIM_SPLIT_HASH : SIM_SPLIT_RANDOM, .rings = 1,
        .rate_per_s = { rates[arrival][0], rates[arrival][1] }, .phase_ns = { 5e8, 3e8 },
        .demands = { demands[demand][0], demands[demand][1], demands[demand][2] }, .n_profile = 3, .n_times = FLOWS,
        .n_works = 1000, .profile_per_s = profile, .times_ns = times, .works_ns = works, .servers_array = servers,
        .balancers_array = balancers, .events_array = events,
    };
    struct sim *sim;
    check(sim_create(&config, &sim), "sim_create");
    for (uint32_t b = 0; b < (shared ? 1 : BALANCERS); b++)
        publish_bids(segments[b], servers);
    check(sim_run(sim, UINT64_MAX), "sim_run");
    struct sim_totals totals;
    struct sim_server_state state[SERVERS];
    sim_totals(sim, &totals);
    sim_servers(sim, state);
    printf("arrival %u demand %u shared %d: %" PRIu64 " arrivals, %" PRIu64 " ok, %016" PRIx64 " %016" PRIx64 " %016" PRIx64 "\n",
           arrival, demand, shared, totals.arrivals, totals.closed[OUTCOME_OK], fnv(records, sizeof records),
           fnv(&totals, sizeof totals), fnv(state, sizeof state));
    sim_destroy(sim);
    for (uint32_t b = 0; b < (shared ? 1 : BALANCERS); b++)
        free(segments[b]);
}

static void references(void)
{
    enum { N = 5000 };
    static uint64_t arrivals[N];
    static double works[N], fct[3][N];
    for (uint64_t i = 0; i < N; i++) {
        arrivals[i] = i * 1000000 + i * i % 900000;
        works[i] = 1e6 + (double)(i * i * i % 977) * 1e4;
    }
    const double speeds[] = { 1, 1, 2 };
    const uint32_t workers[] = { 2, 1, 1 };
    for (uint64_t i = 1; i < N; i++)
        arrivals[i] = arrivals[i] < arrivals[i - 1] ? arrivals[i - 1] : arrivals[i];
    check(sim_central_queue(arrivals, works, N, speeds, workers, 3, fct[0]), "sim_central_queue");
    check(sim_least_work_left(arrivals, works, N, speeds, workers, 3, fct[1]), "sim_least_work_left");
    check(sim_pooled_srpt(arrivals, works, N, 5, fct[2]), "sim_pooled_srpt");
    printf("references: %016" PRIx64 "\n", fnv(fct, sizeof fct));
}

int main(void)
{
    for (uint32_t arrival = SIM_POISSON; arrival <= SIM_ARRIVAL_TRACE; arrival++)
        run(arrival, SIM_EXPONENTIAL, false);
    for (uint32_t demand = SIM_DETERMINISTIC; demand <= SIM_DEMAND_TRACE; demand++)
        run(SIM_POISSON, demand, true);
    references();
    return 0;
}
