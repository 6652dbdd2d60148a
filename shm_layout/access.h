/* How the shared segment is made, attached, published to and read: the only functions that touch its sequence locks.
 *
 * Functions that can fail return 0 (or a size) and a negative number: -errno, or minus an enum segment_error.
 * None prints or exits. Pointers lie on 8 bytes. Python calls these through cffi; the data plane links them.
 */
#ifndef VICKREY_ACCESS_H
#define VICKREY_ACCESS_H

#include "segment.h"

/* cdef:begin */
/* What a segment is sized by. */
struct segment_limits {
    uint32_t max_servers;           /* 1 … SERVERS_LIMIT */
    uint32_t max_workers;           /* 1 … WORKERS_LIMIT */
    uint32_t reservoir_slots;       /* 1 … 4096 */
    uint32_t ring_slots;            /* a power of two, 64 … 65536 */
    uint32_t journal_slots;         /* a power of two, 64 … 65536 */
    uint32_t table_slots;           /* 0 … 1048576 */
};

/* Both sides' values of a mismatch, for the error message. */
struct segment_mismatch {
    uint64_t found;
    uint64_t expected;
};

/* Bytes that a segment of these limits takes; negative: limits out of range. */
int64_t segment_size(const struct segment_limits *limits);

/* Hash of the layout that this code was compiled with. */
uint64_t segment_layout_hash(void);

/* Lay out an empty segment in size zeroed bytes at base, owned by process owner_pid. The magic is stored last. */
int segment_format(void *base, uint64_t size, const struct segment_limits *limits, const char *service, uint64_t owner_pid,
                   uint64_t now_ns);

/* Check the segment mapped at base, size bytes: magic, version, hash, size, offsets and strides, boot id, live owner.
 * Nothing of it may be used before this returned 0. mismatch may be NULL. */
int segment_check(const void *base, uint64_t size, struct segment_mismatch *mismatch);

/* 1: the process that owns the segment is alive (same boot, pid and start time), 0: it is dead. */
int segment_owner_alive(const void *base);

/* Publish length bytes (a multiple of 8) into the block at off_block (header's off_settings or off_directive).
 * One publisher at a time. Never waits; recovers a buffer that a killed publisher left odd. */
int segment_publish(void *base, uint64_t off_block, const void *payload, uint64_t length, uint64_t epoch);

/* Copy the newest payload of a block into out, room bytes; returns its length. epoch may be NULL.
 * -SEGMENT_EEMPTY: nothing published; -SEGMENT_ETORN: no consistent copy in 64 tries; -SEGMENT_ECRC; -SEGMENT_EBOUNDS. */
int64_t segment_read(const void *base, uint64_t off_block, void *out, uint64_t room, uint64_t *epoch);

/* Publications of a block so far: a cheap poll. */
uint64_t segment_published(const void *base, uint64_t off_block);

/* Check a settings or directive payload as its reader must: bounds, finite, non-negative, not zero-sum, curves that never
 * fall, table entries below n_servers. 0, or minus an enum segment_error; *reason is an enum reject. */
int segment_check_settings(const void *payload, uint64_t length, uint32_t max_servers, uint32_t *reason);
int segment_check_directive(const void *payload, uint64_t length, uint32_t max_servers, uint32_t max_table, uint32_t *reason);

/* Copy the stats of servers first … first + n - 1 of one worker into out, each field read whole (relaxed atomic words). */
int segment_read_stats(const void *base, uint32_t worker, uint32_t first, uint32_t n, struct server_stats *out);
/* Copy the 64-bit words {n, time} of servers first … first + n - 1. */
int segment_read_words(const void *base, uint32_t first, uint32_t n, uint64_t *out);
/* Copy one worker's block, and the controller's. */
int segment_read_worker(const void *base, uint32_t worker, struct worker *out);
int segment_read_controller(const void *base, struct controller *out);

/* Copy the reservoirs of one worker and metric for servers first … first + n - 1, each a consistent copy: out has
 * n * reservoir_slots samples, counts and ids n each. A reservoir that could not be copied in 64 tries gets count 0.
 * Returns how many could not. */
int segment_read_reservoirs(const void *base, uint32_t worker, uint32_t metric, uint32_t first, uint32_t n, struct sample *out,
                            uint64_t *counts, uint64_t *ids);

/* Read flow records from *cursor on, at most room of them; moves *cursor past what was read or lost, adds the lost (overwritten)
 * to *lost; returns how many. Any number of readers, each with its own cursor; the writer never waits. */
int segment_read_records(const void *base, uint32_t worker, uint64_t *cursor, struct flow_record *out, uint32_t room,
                         uint64_t *lost);

/* Controller's signs of life. begin: takes the next epoch (the caller holds the lock on the segment's file). */
uint64_t segment_controller_begin(void *base, uint64_t pid, uint64_t now_ns);
void segment_controller_beat(void *base, uint64_t now_ns, uint64_t cycle_ns, uint64_t late, uint64_t failed);

/* Text of a negative return, never NULL. */
const char *segment_strerror(int error);

/* CLOCK_MONOTONIC, ns. */
uint64_t segment_now_ns(void);
/* cdef:end */

#endif
