/* Publishes and reads blocks: two buffers behind sequence locks, so that readers get whole payloads and nobody waits.
 *
 * The writer always fills the buffer that is not the latest; a reader is disturbed only when two publications come while it
 * copies, and then tries again. A writer that is killed leaves its buffer odd and the latest one whole: readers go on with
 * that, and the next writer fills the odd buffer anew. (Lamport, "Concurrent reading and writing", CACM 20(11), 1977.)
 *
 * Always: where a buffer lies and how much it holds follow from the segment's limits; the block's own copy is not trusted.
 */
#include "access.h"
#include "crc.h"
#include "layout.h"
#include "words.h"

#include <errno.h>

#define TRIES 64

int segment_publish(void *base, uint64_t off_block, const void *payload, uint64_t length, uint64_t epoch)
{
    struct segment_header h;
    int error = layout_load(base, &h);
    if (error != 0)
        return error;
    uint64_t capacity = layout_capacity(&h, off_block);
    if ((uintptr_t)payload % 8u != 0)
        return -EINVAL;
    if (length == 0 || length % 8u != 0 || length > capacity)
        return -SEGMENT_EBOUNDS;
    uint32_t crc = crc32_of(payload, length);

    struct block *block = layout_at(base, off_block);
    uint64_t next = (word_load(&block->latest) & 1u) ^ 1u;
    struct block_buffer *buffer = layout_at(base, layout_buffer(off_block, capacity, next));

    uint64_t odd = sequence_begin(&buffer->sequence);
    word_release(&buffer->length_bytes, length);
    word_release(&buffer->epoch, epoch);
    word_release(&buffer->crc, crc);
    words_release(buffer + 1, payload, length);
    sequence_end(&buffer->sequence, odd);
    word_release(&block->latest, next);
    /* Last: who sees the count rise finds the new payload. Killed before this line: seen with the next publication. */
    word_release(&block->published, word_load(&block->published) + 1u);
    return 0;
}

/* One attempt. 0: try again. */
static int64_t read_once(const void *base, uint64_t off_block, uint64_t capacity, void *out, uint64_t room, uint64_t *epoch)
{
    const struct block *block = layout_at_const(base, off_block);
    uint64_t latest = word_acquire(&block->latest);
    if (latest > 1u)
        return -SEGMENT_EBOUNDS;
    const struct block_buffer *buffer = layout_at_const(base, layout_buffer(off_block, capacity, latest));
    uint64_t before = word_acquire(&buffer->sequence); /* pairs with the release in sequence_end() */
    if (before % 2u != 0)
        return 0;
    uint64_t length = word_acquire(&buffer->length_bytes);
    uint64_t written_by = word_acquire(&buffer->epoch);
    uint64_t crc = word_acquire(&buffer->crc);
    int fits = length != 0 && length % 8u == 0 && length <= capacity && length <= room;
    if (fits)
        words_acquire(out, buffer + 1, length);
    if (word_load(&buffer->sequence) != before)
        return 0;
    if (!fits)
        return -SEGMENT_EBOUNDS;
    if (crc32_of(out, length) != crc)
        return -SEGMENT_ECRC;
    if (epoch != NULL)
        *epoch = written_by;
    return (int64_t)length;
}

int64_t segment_read(const void *base, uint64_t off_block, void *out, uint64_t room, uint64_t *epoch)
{
    struct segment_header h;
    int error = layout_load(base, &h);
    if (error != 0)
        return error;
    uint64_t capacity = layout_capacity(&h, off_block);
    if ((uintptr_t)out % 8u != 0)
        return -EINVAL;
    if (capacity == 0)
        return -SEGMENT_EBOUNDS;
    if (segment_published(base, off_block) == 0)
        return -SEGMENT_EEMPTY;
    for (int try = 0; try < TRIES; try++) {
        int64_t length = read_once(base, off_block, capacity, out, room, epoch);
        if (length != 0)
            return length;
    }
    return -SEGMENT_ETORN;
}

uint64_t segment_published(const void *base, uint64_t off_block)
{
    const struct block *block = layout_at_const(base, off_block);
    return word_acquire(&block->published); /* pairs with the last release in segment_publish() */
}
