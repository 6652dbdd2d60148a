/* Random and nearly right payloads, and segments damaged in use: whatever the bytes, nothing is read or written out of bounds.
 *
 *     check_fuzz SEED ROUNDS
 *
 * Run under AddressSanitizer: each payload lies in memory of its exact length. What passes the check is then used as the
 * core uses it: every array is walked, every slot is an index. Prints how many passed and how many were refused.
 */
#include "shm_layout/access.h"
#include "shm_layout/crc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SERVERS 6
#define TABLE 17
#define ROUTES 3

static uint64_t state;

static uint64_t random_word(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t below(uint64_t n)
{
    return random_word() % n;
}

/* A directive that passes, with every array, in memory of exactly *length bytes. */
static char *directive_make(uint64_t *length)
{
    uint32_t n = 1 + (uint32_t)below(SERVERS);
    uint64_t end = sizeof(struct directive), at[10];
    const uint64_t bytes[10] = { 8u * n, 4u * n, 4u * n * CURVE_POINTS, 4u * n, 4u * n, 4u * TABLE, sizeof(struct classic_server) * n,
                                 4u * CURVE_POINTS, 4u * ROUTES * SLA_CLASSES, sizeof(struct aging) * n };
    for (int i = 0; i < 10; i++) {
        at[i] = end;
        end += (bytes[i] + 7) & ~7ULL;
    }
    char *payload = calloc(1, end);
    struct directive *d = (void *)payload;
    *d = (struct directive){ .rule = (uint32_t)below(RULES), .n_servers = n, .table_slots = TABLE, .enforcing_percent = 100,
                             .off_ids = at[0], .off_weights = at[1], .off_curves = at[2], .off_alias_keep = at[3],
                             .off_alias_other = at[4], .off_table = at[5], .off_classic = at[6],
                             .off_reserve = at[7], .off_loads = at[8], .n_routes = ROUTES, .off_aging = at[9] };
    for (uint32_t i = 0; i < n; i++) {
        ((uint64_t *)(void *)(payload + at[0]))[i] = i + 1;
        ((float *)(void *)(payload + at[1]))[i] = 1.0f;
        for (uint32_t k = 0; k < CURVE_POINTS; k++)
            ((float *)(void *)(payload + at[2]))[i * CURVE_POINTS + k] = (float)k;
        ((uint32_t *)(void *)(payload + at[4]))[i] = (uint32_t)below(n);
        ((struct classic_server *)(void *)(payload + at[6]))[i] = (struct classic_server){ 1, 1, 0, 0.8f, 1, 0, 1, 0 };
    }
    for (uint32_t k = 0; k < CURVE_POINTS; k++)
        ((float *)(void *)(payload + at[7]))[k] = (float)k;
    for (uint32_t r = 0; r < ROUTES * SLA_CLASSES; r++)
        ((float *)(void *)(payload + at[8]))[r] = 1.0f;
    for (uint32_t i = 0; i < TABLE; i++)
        ((uint32_t *)(void *)(payload + at[5]))[i] = (uint32_t)below(n);
    *length = end;
    return payload;
}

static char *settings_make(uint64_t *length)
{
    uint32_t n = (uint32_t)below(SERVERS + 1);
    *length = sizeof(struct settings) + n * sizeof(struct server_entry);
    char *payload = calloc(1, *length);
    struct settings *s = (void *)payload;
    s->n_slots = n;
    for (uint32_t i = 0; i < n; i++)
        ((struct server_entry *)(void *)(s + 1))[i] = (struct server_entry){ .id = i + 1, .state = SERVER_READY };
    return payload;
}

static void mutate(char *payload, uint64_t length, uint64_t changes)
{
    static const uint64_t interesting[] = { 0, 1, 7, 8, 255, 256, 264, 0x7f800000, 0x7fc00000, 0xff800000, 0x80000000, UINT32_MAX,
                                            1ULL << 63, UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 255 };
    for (; changes > 0; changes--) {
        uint64_t width = 1ULL << below(4), place = below(length / width) * width, head = below(2) ? 256 : length;
        if (head < length && place >= head)
            place %= head; /* half of the changes hit the head, where the offsets stand */
        uint64_t value = below(2) ? interesting[below(sizeof interesting / sizeof *interesting)] : random_word();
        memcpy(payload + place, &value, width);
    }
}

/* Use a directive that passed as the core does; the sum keeps the compiler from leaving it out. */
static double use(const char *payload)
{
    const struct directive *d = (const void *)payload;
    const struct { uint64_t offset; uint32_t count; } slots[] = {
        { d->off_alias_other, d->n_servers }, { d->off_table, d->table_slots },
    };
    static double counts[SERVERS];
    double sum = 0;
    for (int a = 0; a < 2; a++)
        for (uint32_t i = 0; slots[a].offset != 0 && i < slots[a].count; i++)
            counts[((const uint32_t *)(const void *)(payload + slots[a].offset))[i]] += 1;
    for (uint32_t i = 0; i < d->n_servers; i++) {
        sum += (double)((const uint64_t *)(const void *)(payload + d->off_ids))[i];
        if (d->off_weights != 0)
            sum += (double)((const float *)(const void *)(payload + d->off_weights))[i];
        if (d->off_alias_keep != 0)
            sum += ((const uint32_t *)(const void *)(payload + d->off_alias_keep))[i];
        if (d->off_aging != 0)
            sum += (double)((const struct aging *)(const void *)(payload + d->off_aging))[i].per_second;
        if (d->off_classic != 0)
            sum += (double)((const struct classic_server *)(const void *)(payload + d->off_classic))[i].capacity;
        for (uint32_t k = 0; d->off_curves != 0 && k < CURVE_POINTS; k++)
            sum += (double)((const float *)(const void *)(payload + d->off_curves))[i * CURVE_POINTS + k];
    }
    for (uint32_t k = 0; d->off_reserve != 0 && k < CURVE_POINTS; k++)
        sum += (double)((const float *)(const void *)(payload + d->off_reserve))[k];
    for (uint32_t r = 0; d->off_loads != 0 && r < d->n_routes * SLA_CLASSES; r++)
        sum += (double)((const float *)(const void *)(payload + d->off_loads))[r];
    return sum + (double)strlen(d->policy);
}

static void payloads(uint64_t rounds)
{
    uint64_t passed = 0, used = 0, refused = 0, reasons[REJECTS] = { 0 };
    double sum = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        uint64_t length;
        uint32_t reason = REJECTS;
        int of_settings = below(4) == 0;
        char *payload = of_settings ? settings_make(&length) : directive_make(&length);
        if (below(8) == 0) {
            mutate(payload, length, length / 8); /* noise all over */
        } else {
            mutate(payload, length, below(4));
            if (below(8) == 0)
                payload = realloc(payload, length = 8 * (1 + below(length / 8))); /* cut short */
        }
        int error = of_settings ? segment_check_settings(payload, length, SERVERS, &reason)
                                : segment_check_directive(payload, length, SERVERS, TABLE, &reason);
        if (error == 0) {
            passed++;
            used += !of_settings;
            sum += of_settings ? 0 : use(payload);
        } else {
            refused++;
            reasons[reason]++;
        }
        free(payload);
    }
    printf("%llu passed, %llu refused: bounds %llu, value %llu, table %llu (%g)\n", (unsigned long long)passed,
           (unsigned long long)refused, (unsigned long long)reasons[REJECT_BOUNDS], (unsigned long long)reasons[REJECT_VALUE],
           (unsigned long long)reasons[REJECT_TABLE], sum);
    if (used * 20 < rounds) {           /* an eighth is handed over as it was made */
        fprintf(stderr, "only %llu directives passed: what is made here is no directive any more\n", (unsigned long long)used);
        exit(1);
    }
}

/* Bytes of a segment flip while it is read. */
static void segments(uint64_t rounds)
{
    struct segment_limits limits = { SERVERS, 2, 4, 64, 64, TABLE };
    uint64_t size = (uint64_t)segment_size(&limits), whole = 0, length;
    char *base = aligned_alloc(64, size), *pristine = aligned_alloc(64, size);
    memset(pristine, 0, size);
    segment_format(pristine, size, &limits, "fuzz", (uint64_t)getpid(), 1);
    struct segment_header header;
    memcpy(&header, pristine, sizeof header);
    char *payload = directive_make(&length);
    segment_publish(pristine, header.off_directive, payload, length, 1);
    for (uint64_t round = 0; round < rounds; round++) {
        memcpy(base, pristine, size);
        mutate(base, below(2) ? header.off_directive + 4096 : size, 1 + below(16));
        if (below(2))
            mutate(base, sizeof header, 1 + below(3));
        uint64_t cursor = random_word(), lost = 0, epoch, words[SERVERS], counts[SERVERS], ids[SERVERS];
        struct server_stats *stats = malloc(SERVERS * sizeof *stats);
        struct sample *samples = malloc(SERVERS * 4 * sizeof *samples);
        struct flow_record *records = malloc(5 * sizeof *records);
        struct worker worker;
        struct controller controller;
        char *out = malloc(length);
        segment_check(base, size, NULL);
        segment_owner_alive(base);
        if (segment_read(base, header.off_directive, out, length, &epoch) == (int64_t)length) {
            if (memcmp(out, payload, length) != 0) {
                fprintf(stderr, "a damaged directive was taken for whole\n");
                exit(1);
            }
            whole++;
        }
        segment_read_words(base, 0, SERVERS, words);
        segment_read_stats(base, 1, 0, SERVERS, stats);
        segment_read_worker(base, 1, &worker);
        segment_read_controller(base, &controller);
        segment_read_reservoirs(base, 1, METRIC_DURATION, 0, SERVERS, samples, counts, ids);
        segment_read_records(base, 1, &cursor, records, 5, &lost);
        segment_controller_beat(base, 1, 2, 3, 4);
        segment_controller_begin(base, 1, 2);
        segment_publish(base, header.off_directive, payload, length, 2);
        segment_publish(base, header.off_settings, payload, 8 * below(length / 8), 2);
        free(stats);
        free(samples);
        free(records);
        free(out);
    }
    printf("%llu directives read whole from %llu damaged segments\n", (unsigned long long)whole, (unsigned long long)rounds);
    free(payload);
    free(base);
    free(pristine);
}

static void checksums(void)
{
    char data[4096];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)random_word();
    for (uint64_t length = 0; length < sizeof data - 16; length += 1 + below(16)) {
        uint64_t from = below(16);
        if (crc32_of(data + from, length) != crc32_by_table(data + from, length)) {
            fprintf(stderr, "the two checksums differ at length %llu\n", (unsigned long long)length);
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15u + 1;
    uint64_t rounds = strtoull(argv[2], NULL, 10);
    checksums();
    payloads(rounds);
    segments(rounds / 20);
    return 0;
}
