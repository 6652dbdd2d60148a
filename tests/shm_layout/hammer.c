/* Writers and readers of one segment at full speed: any read that is not whole ends the program with status 1.
 *
 *     hammer threads SECONDS         one publisher, two readers, and a reservoir and ring with writer and reader, as threads
 *     hammer write NAME              publish into the segment NAME until TERM (or KILL)
 *     hammer read NAME               read the segment NAME until TERM; prints how often it succeeded
 *
 * Payload k holds k in every word and is (k mod 512 + 1) words long; so a mixture of two shows, whatever its checksum.
 */
#include "shm_layout/access.h"
#include "shm_layout/words.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORDS_MAX 512
#define SLOTS 16

static volatile sig_atomic_t stop_requested;
static uint32_t stop;
static struct segment_header header;

static void on_term(int signal)
{
    (void)signal;
    stop_requested = 1;
}

static int stopped(void)
{
    return stop_requested || __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

static void fail(const char *what, long long value)
{
    fprintf(stderr, "%s (%lld)\n", what, value);
    exit(1);
}

static void publish(void *base, uint64_t k)
{
    uint64_t payload[WORDS_MAX], words = k % WORDS_MAX + 1;
    for (uint64_t i = 0; i < words; i++)
        payload[i] = k;
    int error = segment_publish(base, header.off_settings, payload, words * 8, k);
    if (error != 0)
        fail(segment_strerror(error), error);
}

/* 1: a whole payload was read, 0: none, which only overload explains. */
static int read_and_check(const void *base)
{
    uint64_t payload[WORDS_MAX + 1], epoch;
    int64_t length = segment_read(base, header.off_settings, payload, sizeof payload, &epoch);
    if (length == -SEGMENT_ETORN || length == -SEGMENT_EEMPTY)
        return 0;
    if (length < 0)
        fail(segment_strerror((int)length), length);
    if ((uint64_t)length != (epoch % WORDS_MAX + 1) * 8)
        fail("torn: the length is of another payload", length);
    for (int64_t i = 0; i < length / 8; i++)
        if (payload[i] != epoch)
            fail("torn: the payload is a mixture", i);
    return 1;
}

static void *publisher(void *base)
{
    for (uint64_t k = 1; !stopped(); k++)
        publish(base, k);
    return NULL;
}

static void *reader(void *base)
{
    uint64_t *reads = calloc(1, sizeof *reads);
    while (!stopped())
        *reads += (uint64_t)read_and_check(base);
    return reads;
}

/* A worker as segment.h asks of it: count k, every sample {k, k}, every record's numbers k. */
static void *worker(void *base)
{
    struct reservoir *r = (void *)((char *)base + segment_reservoir_offset(&header, 0, 0, METRIC_FCT));
    uint64_t *samples = (void *)(r + 1);
    struct flow_record *ring = (void *)((char *)base + segment_ring_offset(&header, 0));
    struct worker *w = (void *)((char *)base + segment_worker_offset(&header, 0));
    for (uint64_t k = 1; !stopped(); k++) {
        uint64_t odd = sequence_begin(&r->sequence);
        for (int i = 0; i < SLOTS * 2; i++)
            word_release(samples + i, k);
        word_release(&r->count, k);
        word_release(&r->id, k);
        sequence_end(&r->sequence, odd);

        struct flow_record *record = ring + ((k - 1) & (header.ring_slots - 1));
        word_store(&record->sequence, 0);
        word_release(&record->opened_ns, k);
        word_release(&record->closed_ns, k);
        word_release(&record->directive_sequence, k);
        word_release(&record->sequence, k);
        word_release(&w->ring_head, k);
    }
    return NULL;
}

static void *worker_reader(void *base)
{
    uint64_t *reads = calloc(1, sizeof *reads);
    uint64_t cursor = 0, lost = 0, records = 0;
    static struct flow_record out[64];
    while (!stopped()) {
        struct sample samples[SLOTS];
        uint64_t count, id;
        if (segment_read_reservoirs(base, 0, METRIC_FCT, 0, 1, samples, &count, &id) == 0) {
            for (int i = 0; i < SLOTS; i++)
                if (samples[i].time_ns != count || samples[i].value_ns != count || id != count)
                    fail("torn: the reservoir is a mixture", i);
            *reads += 1;
        }
        uint64_t before = cursor - records - lost;
        int got = segment_read_records(base, 0, &cursor, out, 64, &lost);
        if (got < 0)
            fail(segment_strerror(got), got);
        for (int i = 0; i < got; i++) {
            uint64_t k = out[i].sequence;
            if (out[i].opened_ns != k || out[i].closed_ns != k || out[i].directive_sequence != k)
                fail("torn: the record is a mixture", i);
        }
        records += (uint64_t)got;
        if (before != 0 || cursor != records + lost)
            fail("records are neither read nor counted as lost", (long long)cursor);
    }
    if (records == 0)
        fail("no flow record was read", 0);
    return reads;
}

static int threads(unsigned seconds)
{
    struct segment_limits limits = { .max_servers = 16, .max_workers = 1, .reservoir_slots = SLOTS, .ring_slots = 64,
                                     .journal_slots = 64, .table_slots = 0 };
    uint64_t size = (uint64_t)segment_size(&limits);
    void *base = aligned_alloc(64, size);
    memset(base, 0, size);
    int error = segment_format(base, size, &limits, "hammer", (uint64_t)getpid(), segment_now_ns());
    if (error != 0)
        fail(segment_strerror(error), error);
    memcpy(&header, base, sizeof header);
    void *(*const roles[])(void *) = { publisher, worker, reader, reader, worker_reader };
    pthread_t ids[5];
    for (int i = 0; i < 5; i++)
        pthread_create(&ids[i], NULL, roles[i], base);
    sleep(seconds);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 5; i++) {
        uint64_t *reads = NULL;
        pthread_join(ids[i], (void **)&reads);
        if (reads != NULL && *reads == 0)
            fail("a reader never succeeded", i);
        free(reads);
    }
    printf("%llu published\n", (unsigned long long)segment_published(base, header.off_settings));
    free(base);
    return 0;
}

static void *attach(const char *name)
{
    int fd = shm_open(name, O_RDWR, 0);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0)
        fail("no such segment", 0);
    void *base = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = base == MAP_FAILED ? -1 : segment_check(base, (uint64_t)status.st_size, NULL);
    if (error != 0)
        fail(segment_strerror(error), error);
    memcpy(&header, base, sizeof header);
    return base;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    if (strcmp(argv[1], "threads") == 0)
        return threads((unsigned)atoi(argv[2]));
    signal(SIGTERM, on_term);
    void *base = attach(argv[2]);
    const int writes = strcmp(argv[1], "write") == 0;
    uint64_t k = segment_published(base, header.off_settings);
    if (writes && k == 0)                   /* whoever reads from "ready" on finds something */
        publish(base, ++k);
    puts("ready");
    fflush(stdout);
    if (writes) {
        while (!stopped())
            publish(base, ++k);
        return 0;
    }
    uint64_t reads = 0, tries = 0;
    for (; !stopped(); tries++)
        reads += (uint64_t)read_and_check(base);
    printf("%llu of %llu\n", (unsigned long long)reads, (unsigned long long)tries);
    return reads > 0 ? 0 : 1;
}
