/* Makes a segment and decides whether one may be attached: layout, identity, owner.
 *
 * Always: nothing of a segment is used before segment_check() returned 0, and the magic is the last word that
 * segment_format() stores, so that a half-made segment is not taken for one.
 */
#include "access.h"
#include "layout.h"
#include "words.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#ifndef LAYOUT_HASH
#error "LAYOUT_HASH is not defined: pass the compiler what `python -m shm_layout.build_ffi --define` prints"
#endif

#define RESERVOIR_SLOTS_LIMIT 4096u
#define RING_SLOTS_LIMIT 65536u
#define TABLE_SLOTS_LIMIT 1048576u
#define ARRAYS_OF_DIRECTIVE 10u

static uint64_t lines(uint64_t bytes)
{
    return (bytes + 63u) & ~(uint64_t)63u;
}

static int is_ring_size(uint32_t slots)
{
    return slots >= 64u && slots <= RING_SLOTS_LIMIT && (slots & (slots - 1u)) == 0;
}

static int limits_are_valid(const struct segment_header *h)
{
    return h->max_servers >= 1u && h->max_servers <= SERVERS_LIMIT && h->max_workers >= 1u && h->max_workers <= WORKERS_LIMIT &&
           h->reservoir_slots >= 1u && h->reservoir_slots <= RESERVOIR_SLOTS_LIMIT && is_ring_size(h->ring_slots) &&
           is_ring_size(h->journal_slots) && h->table_slots <= TABLE_SLOTS_LIMIT;
}

static uint64_t settings_capacity(const struct segment_header *h)
{
    return sizeof(struct settings) + h->max_servers * (uint64_t)sizeof(struct server_entry);
}

static uint64_t directive_capacity(const struct segment_header *h)
{
    /* a row of each array: id, weight, curve, the alias table's two, classic parameters, aging; each array may begin on a line */
    uint64_t row = 8u + 4u + CURVE_POINTS * 4u + 4u + 4u + sizeof(struct classic_server) + sizeof(struct aging);
    uint64_t others = h->table_slots * 4ULL + (CURVE_POINTS + (ROUTES_MAX + 1u) * SLA_CLASSES) * 4u;
    return lines(sizeof(struct directive) + h->max_servers * row + others + ARRAYS_OF_DIRECTIVE * 64u);
}

static uint64_t block_bytes(uint64_t capacity)
{
    return sizeof(struct block) + 2u * (sizeof(struct block_buffer) + capacity);
}

int layout_fill(struct segment_header *h)
{
    if (!limits_are_valid(h))
        return -EINVAL;
    uint64_t rows = (uint64_t)h->max_workers * h->max_servers;
    h->reservoir_stride = lines(sizeof(struct reservoir) + h->reservoir_slots * (uint64_t)sizeof(struct sample));
    h->ring_stride = h->ring_slots * (uint64_t)sizeof(struct flow_record);
    h->journal_stride = lines(h->journal_slots * (uint64_t)sizeof(uint32_t));
    h->off_settings = sizeof(struct segment_header);
    h->off_directive = h->off_settings + block_bytes(settings_capacity(h));
    h->off_controller = h->off_directive + block_bytes(directive_capacity(h));
    h->off_words = h->off_controller + sizeof(struct controller);
    h->off_workers = h->off_words + h->max_servers * (uint64_t)sizeof(struct server_word);
    h->off_stats = h->off_workers + h->max_workers * (uint64_t)sizeof(struct worker);
    h->off_reservoirs = h->off_stats + rows * sizeof(struct server_stats);
    h->off_rings = h->off_reservoirs + rows * METRICS * h->reservoir_stride;
    h->off_journals = h->off_rings + h->max_workers * h->ring_stride;
    h->size_bytes = h->off_journals + h->max_workers * h->journal_stride;
    return 0;
}

uint64_t layout_capacity(const struct segment_header *h, uint64_t off_block)
{
    if (off_block == h->off_settings)
        return settings_capacity(h);
    if (off_block == h->off_directive)
        return directive_capacity(h);
    return 0;
}

/* Compare the layout that h states with the one that its limits give. */
static int layout_compare(const struct segment_header *h, struct segment_mismatch *mismatch)
{
    struct segment_header e = *h;
    if (layout_fill(&e) != 0) {
        *mismatch = (struct segment_mismatch){ h->max_servers, SERVERS_LIMIT };
        return -SEGMENT_EBOUNDS;
    }
    const uint64_t pairs[][2] = {
        { h->size_bytes, e.size_bytes },   { h->off_settings, e.off_settings },     { h->off_directive, e.off_directive },
        { h->off_controller, e.off_controller }, { h->off_words, e.off_words },     { h->off_workers, e.off_workers },
        { h->off_stats, e.off_stats },     { h->off_reservoirs, e.off_reservoirs }, { h->off_rings, e.off_rings },
        { h->off_journals, e.off_journals }, { h->reservoir_stride, e.reservoir_stride }, { h->ring_stride, e.ring_stride },
        { h->journal_stride, e.journal_stride },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (pairs[i][0] != pairs[i][1]) {
            *mismatch = (struct segment_mismatch){ pairs[i][0], pairs[i][1] };
            return -SEGMENT_EBOUNDS;
        }
    }
    return 0;
}

int layout_load(const void *base, struct segment_header *h)
{
    struct segment_mismatch ignored;
    words_acquire(h, base, sizeof *h);
    return layout_compare(h, &ignored);
}

int64_t segment_size(const struct segment_limits *limits)
{
    struct segment_header h = {
        .max_servers = limits->max_servers, .max_workers = limits->max_workers, .reservoir_slots = limits->reservoir_slots,
        .ring_slots = limits->ring_slots, .journal_slots = limits->journal_slots, .table_slots = limits->table_slots,
    };
    int error = layout_fill(&h);
    return error != 0 ? error : (int64_t)h.size_bytes;
}

uint64_t segment_layout_hash(void)
{
    return LAYOUT_HASH;
}

uint64_t segment_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Read a small file of /proc into text, NUL-terminated. */
static int read_text(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, text, room - 1);
    int error = n < 0 ? -errno : 0;
    close(fd);
    text[n < 0 ? 0 : n] = '\0';
    return error;
}

static int read_boot_id(uint8_t id[16])
{
    char text[64];
    int error = read_text("/proc/sys/kernel/random/boot_id", text, sizeof text);
    if (error != 0)
        return error;
    unsigned digits = 0;
    for (const char *c = text; *c != '\0' && digits < 32; c++) {
        if (*c == '-')
            continue;
        int value = *c >= '0' && *c <= '9' ? *c - '0' : *c >= 'a' && *c <= 'f' ? *c - 'a' + 10 : -1;
        if (value < 0)
            break;
        id[digits / 2] = (uint8_t)(digits % 2 == 0 ? value << 4 : id[digits / 2] | value);
        digits++;
    }
    return digits == 32 ? 0 : -EIO;
}

/* Start time of a live process in clock ticks since boot, 0: there is none (a zombie runs nothing, so it counts as dead). */
static uint64_t process_start_ticks(uint64_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%llu/stat", (unsigned long long)pid);
    if (read_text(path, text, sizeof text) != 0)
        return 0;
    const char *rest = strrchr(text, ')'); /* the name in front may itself hold spaces and brackets */
    if (rest == NULL || rest[1] != ' ' || rest[2] == 'Z' || rest[2] == 'X')
        return 0;
    rest += 2;
    for (int field = 3; field < 22; field++) {
        rest = strchr(rest, ' ');
        if (rest == NULL)
            return 0;
        rest++;
    }
    return strtoull(rest, NULL, 10);
}

int segment_format(void *base, uint64_t size, const struct segment_limits *limits, const char *service, uint64_t owner_pid,
                   uint64_t now_ns)
{
    struct segment_header h = {
        .layout_version = LAYOUT_VERSION, .header_bytes = sizeof h, .layout_hash = LAYOUT_HASH,
        .owner_pid = owner_pid, .created_ns = now_ns,
        .max_servers = limits->max_servers, .max_workers = limits->max_workers, .reservoir_slots = limits->reservoir_slots,
        .ring_slots = limits->ring_slots, .journal_slots = limits->journal_slots, .table_slots = limits->table_slots,
    };
    int error = layout_fill(&h);
    if (error != 0)
        return error;
    if (((uintptr_t)base & 7u) != 0 || strlen(service) >= NAME_BYTES)
        return -EINVAL;
    if (size < h.size_bytes)
        return -ENOSPC;
    memcpy(h.service, service, strlen(service));
    if ((error = read_boot_id(h.boot_id)) != 0)
        return error;
    if ((h.owner_start_ticks = process_start_ticks(owner_pid)) == 0)
        return -ESRCH;
    if (getrandom(&h.generation, sizeof h.generation, 0) != (ssize_t)sizeof h.generation)
        return -EIO;

    const uint64_t blocks[] = { h.off_settings, h.off_directive };
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        struct block *block = layout_at(base, blocks[i]);
        uint64_t capacity = layout_capacity(&h, blocks[i]);
        word_store(&block->capacity_bytes, capacity);
        word_store(&block->off_buffer[0], layout_buffer(blocks[i], capacity, 0));
        word_store(&block->off_buffer[1], layout_buffer(blocks[i], capacity, 1));
    }
    words_release(&((uint64_t *)base)[1], &h.layout_version, sizeof h - sizeof h.magic);
    word_release(base, SEGMENT_MAGIC); /* pairs with the acquire in segment_check() */
    return 0;
}

static int differ(struct segment_mismatch *mismatch, uint64_t found, uint64_t expected, int error)
{
    *mismatch = (struct segment_mismatch){ found, expected };
    return -error;
}

/* The owner of the header's copy h: 0, -SEGMENT_EBOOT or -SEGMENT_EOWNER. */
static int owner_check(const struct segment_header *h, struct segment_mismatch *mismatch)
{
    uint8_t boot_id[16];
    int error = read_boot_id(boot_id);
    if (error != 0)
        return error;
    if (memcmp(boot_id, h->boot_id, sizeof boot_id) != 0) {
        uint64_t found, expected;
        memcpy(&found, h->boot_id, 8);
        memcpy(&expected, boot_id, 8);
        return differ(mismatch, __builtin_bswap64(found), __builtin_bswap64(expected), SEGMENT_EBOOT);
    }
    uint64_t ticks = process_start_ticks(h->owner_pid);
    if (ticks != h->owner_start_ticks || ticks == 0)
        return differ(mismatch, h->owner_start_ticks, ticks, SEGMENT_EOWNER);
    return 0;
}

int segment_owner_alive(const void *base)
{
    struct segment_header h;
    struct segment_mismatch ignored;
    words_acquire(&h, base, sizeof h);
    return owner_check(&h, &ignored) == 0;
}

static int block_check(const void *base, uint64_t off_block, uint64_t capacity, struct segment_mismatch *mismatch)
{
    const struct block *block = layout_at_const(base, off_block);
    uint64_t found = word_load(&block->capacity_bytes);
    if (found != capacity)
        return differ(mismatch, found, capacity, SEGMENT_EBOUNDS);
    for (uint64_t i = 0; i < 2; i++) {
        found = word_load(&block->off_buffer[i]);
        if (found != layout_buffer(off_block, capacity, i))
            return differ(mismatch, found, layout_buffer(off_block, capacity, i), SEGMENT_EBOUNDS);
    }
    return 0;
}

int segment_check(const void *base, uint64_t size, struct segment_mismatch *mismatch)
{
    struct segment_mismatch unwanted;
    struct segment_header h;
    if (mismatch == NULL)
        mismatch = &unwanted;
    if (size < sizeof h)
        return differ(mismatch, size, sizeof h, SEGMENT_ETRUNCATED);
    uint64_t magic = word_acquire(base); /* pairs with the release in segment_format() */
    if (magic != SEGMENT_MAGIC)
        return differ(mismatch, magic, SEGMENT_MAGIC, SEGMENT_EMAGIC);
    words_acquire(&h, base, sizeof h);
    if (h.layout_version != LAYOUT_VERSION)
        return differ(mismatch, h.layout_version, LAYOUT_VERSION, SEGMENT_EVERSION);
    if (h.layout_hash != LAYOUT_HASH)
        return differ(mismatch, h.layout_hash, LAYOUT_HASH, SEGMENT_EHASH);
    if (h.header_bytes != sizeof h)
        return differ(mismatch, h.header_bytes, sizeof h, SEGMENT_ESIZE);
    if (size < h.size_bytes)
        return differ(mismatch, size, h.size_bytes, SEGMENT_ETRUNCATED);
    if (size > h.size_bytes)
        return differ(mismatch, size, h.size_bytes, SEGMENT_ESIZE);
    int error = layout_compare(&h, mismatch);
    if (error != 0)
        return error;
    if (memchr(h.service, '\0', sizeof h.service) == NULL)
        return differ(mismatch, (uint8_t)h.service[NAME_BYTES - 1], 0, SEGMENT_EBOUNDS);
    if ((error = block_check(base, h.off_settings, settings_capacity(&h), mismatch)) != 0 ||
        (error = block_check(base, h.off_directive, directive_capacity(&h), mismatch)) != 0)
        return error;
    return owner_check(&h, mismatch);
}

const char *segment_strerror(int error)
{
    static const char *const own[] = {
        "foreign file: the magic differs", "the layout version differs", "the layout hash differs", "the size differs",
        "truncated", "the owner is dead", "no consistent copy: the writer is too fast", "nothing was published yet",
        "the checksum differs", "an offset or length is out of bounds", "a value is out of range",
        "made before the machine's last boot",
    };
    int code = error < 0 ? -error : error;
    if (code >= SEGMENT_EMAGIC && code <= SEGMENT_EBOOT)
        return own[code - SEGMENT_EMAGIC];
    const char *text = strerrordesc_np(code);
    return text != NULL ? text : "unknown error";
}
