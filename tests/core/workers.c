/* Several workers over one segment, with a controller that publishes and a reader that reads: nothing is lost, nothing races.
 *
 * Runs under ThreadSanitizer. At the end: the words are back to zero, times and counts add up over the workers, and each worker's
 * keys, which followed the others' journals, are what the words say. Arguments: workers, cycles each.
 */
#include "dataplane/core/core_private.h"
#include "shm_layout/access.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define SERVERS 8u
#define FLOWS 20u
#define SLOTS 64u                   /* of a journal: small, so that it is overrun now and then */

static uint8_t *segment;
static uint64_t off_settings, off_directive, cycles, began_ns;
static uint32_t n_workers;
static int working;                 /* atomic: workers still at it */
static pthread_barrier_t together;

#define REQUIRE(what)                                                    \
    do {                                                                 \
        if (!(what)) {                                                   \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            exit(1);                                                     \
        }                                                                \
    } while (0)

static void publish_settings(void)
{
    static union { struct settings head; uint64_t words[(sizeof(struct settings) + SERVERS * sizeof(struct server_entry)) / 8]; } p;
    p.head.version++;
    p.head.n_slots = SERVERS;
    p.head.fallback_rule = RULE_BIDS;
    p.head.sample_durations = 2;
    p.head.stale_after_ns = 3000000000ULL;
    struct server_entry *e = (struct server_entry *)(void *)(&p.head + 1);
    for (uint32_t i = 0; i < SERVERS; i++)
        e[i] = (struct server_entry){ .id = i + 1, .state = SERVER_READY, .weight = 1 + (uint32_t)p.head.version % 3 };
    REQUIRE(segment_publish(segment, off_settings, &p, sizeof p, 1) == 0);
}

static void publish_directive(uint64_t epoch)
{
    static union {
        struct directive head;
        uint64_t words[(sizeof(struct directive) + SERVERS * (8 + 4 + 4 * CURVE_POINTS + 4)) / 8];
    } p;
    struct directive *d = &p.head;
    d->sequence++;
    d->epoch = epoch;
    d->issued_ns = segment_now_ns();
    d->rule = d->sequence % 4 ? RULE_BIDS : RULE_WRR;
    d->choices = d->sequence % 3 ? 0 : 2;
    d->enforcing_percent = d->sequence % 5 ? 100 : 50;
    d->n_servers = SERVERS;
    d->off_ids = sizeof *d;
    d->off_weights = d->off_ids + SERVERS * 8;
    d->off_curves = d->off_weights + SERVERS * 4;
    uint64_t *ids = (uint64_t *)(void *)((uint8_t *)&p + d->off_ids);
    float *weights = (float *)(void *)((uint8_t *)&p + d->off_weights), *curves = (float *)(void *)((uint8_t *)&p + d->off_curves);
    for (uint32_t i = 0; i < SERVERS; i++) {
        ids[i] = i + 1;
        weights[i] = (float)(i + 1);
        for (uint32_t point = 0; point < CURVE_POINTS; point++)
            curves[i * CURVE_POINTS + point] = (float)(curve_bin_low(point) + 1) / (float)(i + 1);
    }
    REQUIRE(segment_publish(segment, off_directive, &p, d->off_curves + SERVERS * 4 * CURVE_POINTS, epoch) == 0);
}

static void *control(void *unused)
{
    uint64_t epoch = segment_controller_begin(segment, 1, segment_now_ns());
    while (__atomic_load_n(&working, __ATOMIC_RELAXED)) {
        publish_directive(epoch);
        segment_controller_beat(segment, segment_now_ns(), 1000, 0, 0);
        if (rng_mix(segment_now_ns()) % 8 == 0)
            publish_settings();
    }
    return unused;
}

static void *read_all(void *unused)
{
    static struct server_stats stats[SERVERS];
    static struct sample samples[SERVERS * 16];
    static struct flow_record records[64];
    uint64_t counts[SERVERS], ids[SERVERS], words[SERVERS], cursor = 0, lost = 0;
    struct worker worker;
    while (__atomic_load_n(&working, __ATOMIC_RELAXED)) {
        for (uint32_t w = 0; w < n_workers; w++) {
            REQUIRE(segment_read_stats(segment, w, 0, SERVERS, stats) == 0);
            REQUIRE(segment_read_worker(segment, w, &worker) == 0);
            REQUIRE(segment_read_reservoirs(segment, w, METRIC_FCT, 0, SERVERS, samples, counts, ids) >= 0);
            for (uint32_t i = 0; i < SERVERS; i++)
                REQUIRE(ids[i] == 0 || ids[i] == i + 1);
        }
        REQUIRE(segment_read_words(segment, 0, SERVERS, words) == 0);
        REQUIRE(segment_read_records(segment, 0, &cursor, records, 64, &lost) >= 0);
    }
    return unused;
}

static void check_keys(struct balancer *b)
{
    balancer_follow(b);
    struct book *books[] = { &b->primary, &b->fallback };
    for (int k = 0; k < 2; k++) {
        if (!books[k]->in_use)
            continue;
        int32_t followed[SERVERS];
        memcpy(followed, books[k]->key, sizeof followed);
        book_rekey_all(b, books[k]);
        REQUIRE(memcmp(followed, books[k]->key, sizeof followed) == 0);
    }
}

static void *work(void *argument)
{
    uint32_t w = (uint32_t)(uintptr_t)argument;
    size_t bytes = balancer_size(segment);
    void *memory = aligned_alloc(64, bytes);
    memset(memory, 0, bytes);
    struct balancer *b = balancer_create(memory, segment, w, w + 1, segment_now_ns());
    REQUIRE(b);
    struct flow *flows = calloc(FLOWS, sizeof *flows);
    pthread_barrier_wait(&together);
    for (uint64_t c = 0; c < cycles; c++) {
        uint64_t now = segment_now_ns();
        struct flow *f = &flows[c % FLOWS];
        flow_close(b, f, now, 1, 2, OUTCOME_OK);
        struct flow_key key = { .hash = rng_mix(c), .load = 1, .avoid = c % 7 ? NO_SERVER : (uint32_t)(c % SERVERS) };
        struct award award = balancer_dispatch(b, &key, now);
        REQUIRE(award.server < SERVERS);
        flow_open(b, f, award.server, 1, now, now);
        if (c % 16 == 0)
            balancer_refresh(b, now);
        if (c % 64 == 0) {
            struct flow_record r = { .server = award.server };
            balancer_sample(b, now);
            balancer_record(b, &r, "/", 1);
        }
    }
    /* A worker that saw no chores since the others came does not follow them yet: wait until it does, then stop together. */
    b->chores_due_ns = 0;
    balancer_refresh(b, segment_now_ns());
    REQUIRE(b->n_peers == n_workers - 1);
    pthread_barrier_wait(&together);
    for (uint32_t i = 0; i < FLOWS / 2; i++)
        flow_close(b, &flows[i], segment_now_ns(), 1, 2, OUTCOME_OK);
    pthread_barrier_wait(&together);
    check_keys(b);
    pthread_barrier_wait(&together);
    for (uint32_t i = FLOWS / 2; i < FLOWS; i++)
        flow_close(b, &flows[i], segment_now_ns(), 1, 2, OUTCOME_OK);
    __atomic_fetch_sub(&working, 1, __ATOMIC_RELAXED);
    free(flows);
    free(memory);
    return NULL;
}

static void check_sums(void)
{
    struct server_stats stats[SERVERS];
    uint64_t words[SERVERS], time_ns[SERVERS] = { 0 }, flows = 0, arrivals = 0, completions = 0, closed = 0;
    REQUIRE(segment_read_words(segment, 0, SERVERS, words) == 0);
    for (uint32_t w = 0; w < n_workers; w++) {
        REQUIRE(segment_read_stats(segment, w, 0, SERVERS, stats) == 0);
        for (uint32_t i = 0; i < SERVERS; i++) {
            REQUIRE(stats[i].in_flight == 0 && stats[i].load_in_flight == 0.0);
            flows += stats[i].flows_total;
            closed += stats[i].outcomes[OUTCOME_OK];
            for (uint32_t n = 0; n < CURVE_POINTS; n++) {
                time_ns[i] += stats[i].time_ns[n];
                arrivals += stats[i].arrivals[n];
                completions += stats[i].completions[n];
            }
        }
    }
    REQUIRE(flows == n_workers * cycles && closed == flows && arrivals == flows && completions == flows);
    for (uint32_t i = 0; i < SERVERS; i++) {
        REQUIRE(words[i] >> WORD_TIME_BITS == 0);
        /* what was charged is the time of the last move minus that of the first */
        uint64_t until = ((words[i] & WORD_TIME_MASK) - (began_ns >> WORD_TIME_SHIFT)) << WORD_TIME_SHIFT;
        REQUIRE(time_ns[i] <= until);
    }
}

int main(int argc, char **argv)
{
    n_workers = argc > 1 ? (uint32_t)atoi(argv[1]) : 3;
    cycles = argc > 2 ? strtoull(argv[2], NULL, 10) : 10000;
    struct segment_limits limits = { SERVERS, n_workers, 16, 64, SLOTS, 0 };
    uint64_t size = (uint64_t)segment_size(&limits);
    segment = aligned_alloc(64, size);
    memset(segment, 0, size);
    began_ns = segment_now_ns();
    REQUIRE(segment_format(segment, size, &limits, "workers", 1, began_ns) == 0);
    off_settings = ((struct segment_header *)(void *)segment)->off_settings;
    off_directive = ((struct segment_header *)(void *)segment)->off_directive;
    publish_settings();
    balancer_repair(segment, began_ns);
    working = (int)n_workers;
    REQUIRE(pthread_barrier_init(&together, NULL, n_workers) == 0);
    pthread_t threads[WORKERS_LIMIT], controller, reader;
    REQUIRE(pthread_create(&controller, NULL, control, NULL) == 0 && pthread_create(&reader, NULL, read_all, NULL) == 0);
    for (uint32_t w = 0; w < n_workers; w++)
        REQUIRE(pthread_create(&threads[w], NULL, work, (void *)(uintptr_t)w) == 0);
    for (uint32_t w = 0; w < n_workers; w++)
        pthread_join(threads[w], NULL);
    pthread_join(controller, NULL);
    pthread_join(reader, NULL);
    check_sums();
    printf("%u workers, %lu cycles each\n", n_workers, (unsigned long)cycles);
    free(segment);
    return 0;
}
