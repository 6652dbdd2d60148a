/* Flow records: one line for each finished flow, in a ring that overwrites.
 *
 * Any number of readers follow it, each with its own cursor (segment_read_records); the worker never waits for them.
 */
#include "core_private.h"

void balancer_record(struct balancer *b, struct flow_record *r, const char *target, size_t target_bytes)
{
    uint64_t head = LOAD(b->me->ring_head);
    struct flow_record *slot = &b->ring[head & b->ring_mask];
    size_t kept = target_bytes < TARGET_BYTES ? target_bytes : TARGET_BYTES;
    kept = target && b->settings->log_targets ? kept : 0;
    memcpy(r->target, kept ? target : "", kept);
    memset(r->target + kept, 0, -kept & 7u);
    r->target_bytes = (uint32_t)kept;
    r->sequence = head + 1u;
    /* What lies behind the end of the target stays as it was: nobody reads it. */
    size_t bytes = (offsetof(struct flow_record, target) + kept + 7u) & ~(size_t)7u;
    word_store(&slot->sequence, 0); /* the release stores keep it before them */
    words_release(&slot->opened_ns, &r->opened_ns, bytes - offsetof(struct flow_record, opened_ns));
    words_release(&slot->load, &r->load, offsetof(struct flow_record, reserved) + 4u - offsetof(struct flow_record, load));
    word_release(&slot->sequence, head + 1u); /* pairs with the acquire in segment_read_records() */
    word_release(&b->me->ring_head, head + 1u);
}
