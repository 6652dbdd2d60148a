/* Bodies in transit: bytes stay in the buffer that they were received into, and chunks are framed anew around them.
 *
 * Data of several small chunks that arrived together is moved down to lie side by side and leaves as one chunk: its size line
 * takes the place in front (the old line, or the buffer's headroom), its end the place behind.
 */
#include "proxy.h"

#include <string.h>

static const char LAST_CHUNK[] = "0\r\n\r\n";

void body_begin(struct body *body, enum framing from, enum framing to, uint64_t length)
{
    body->from = (uint8_t)from;
    body->to = (uint8_t)to;
    body->left = length;
    body->done = from == FRAME_NONE || (from == FRAME_LENGTH && length == 0);
    if (from == FRAME_CHUNKED)
        chunked_begin(&body->chunks);
}

/* Put head in front of the n bytes at at, when there is room above floor, and send both; else head in a buffer of its own. */
static bool push_with_head(struct conn *dst, struct buffer *buffer, char *at, uint32_t n, char *floor, const char *head, uint32_t head_n)
{
    if (head_n == 0 || (buffer && at - floor >= (ptrdiff_t)head_n)) {
        if (head_n)
            memcpy(at - head_n, head, head_n);
        conn_push(dst, buffer, at - head_n, n + head_n);
        return true;
    }
    struct buffer *own = buffer_take(&dst->loop->pools[BUFFER_SMALL]);
    if (!own)
        return false;
    memcpy(own->data, head, head_n);
    conn_push(dst, own, own->data, head_n);
    buffer_drop(dst->loop->pools, own);
    conn_push(dst, buffer, at, n);
    return true;
}

/* Trailer fields follow: keep those that may pass behind the last chunk's line. Without a buffer they are left out. */
static void keep_trailers(struct body *body, struct buffer_pool pools[BUFFER_SIZES])
{
    body->trailers = buffer_take(&pools[BUFFER_SMALL]);
    if (body->trailers) {
        memcpy(body->trailers->data, LAST_CHUNK, 3);
        body->chunks.trailer = body->trailers->data + 3;
        body->chunks.trailer_room = BUFFER_SMALL_BYTES - 5;
    }
}

void body_drop(struct body *body, struct buffer_pool pools[BUFFER_SIZES])
{
    buffer_drop(pools, body->trailers);
    body->trailers = NULL;
}

/* The end of a chunked body: the last chunk, with trailer fields when there are some. */
static void push_end(struct body *body, struct conn *dst)
{
    uint32_t n = body->trailers ? body->chunks.trailer_n : 0;
    if (n) {
        memcpy(body->trailers->data + 3 + n, "\r\n", 2);
        conn_push(dst, body->trailers, body->trailers->data, n + 5);
    } else {
        conn_push(dst, NULL, (char *)(uintptr_t)LAST_CHUNK, sizeof LAST_CHUNK - 1);
    }
    body_drop(body, dst->loop->pools);
}

static int64_t forward_chunked(struct body *body, struct conn *dst, struct buffer *buffer, char *at, uint32_t n, char *floor,
                               const char *head, uint32_t head_n)
{
    char *data = NULL;
    uint32_t total = 0, used = 0;
    while (used < n && !body->chunks.done) {
        struct span span = {0};
        if (body->chunks.last && !body->trailers && body->to == FRAME_CHUNKED)
            keep_trailers(body, dst->loop->pools);
        int64_t took = chunked_read(&body->chunks, at + used, n - used, &span);
        if (took <= 0)
            return -1;
        used += (uint32_t)took;
        if (span.n == 0)
            continue;
        if (!data)
            data = (char *)(uintptr_t)span.at;
        else if (data + total != span.at)
            memmove(data + total, span.at, span.n);
        total += span.n;
    }
    body->done = body->chunks.done;
    if (body->to != FRAME_CHUNKED || total == 0) {
        if (!push_with_head(dst, buffer, data ? data : at, total, data ? floor : at, head, head_n))
            return -1;
        if (body->done && body->to == FRAME_CHUNKED)
            push_end(body, dst);
        return used;
    }
    char line[24];
    size_t line_n = chunked_write_size(total, line);
    if (data - floor < (ptrdiff_t)line_n) {         /* tiny chunks right behind unsent bytes: take the line elsewhere */
        struct buffer *own = buffer_take(&dst->loop->pools[BUFFER_SMALL]);
        if (!own)
            return -1;
        memcpy(own->data, head, head_n);
        memcpy(own->data + head_n, line, line_n);
        conn_push(dst, own, own->data, head_n + (uint32_t)line_n);
        buffer_drop(dst->loop->pools, own);
        line_n = head_n = 0;
    }
    data -= line_n;
    memcpy(data, line, line_n);
    total += (uint32_t)line_n;
    memcpy(data + total, "\r\n", 2);                /* over the old one, or into the tail of the buffer */
    total += 2;
    bool ended = body->done && !body->trailers;     /* without trailer fields the end lies where the old one did */
    if (ended) {
        memcpy(data + total, LAST_CHUNK, sizeof LAST_CHUNK - 1);
        total += sizeof LAST_CHUNK - 1;
    }
    if (!push_with_head(dst, buffer, data, total, floor, head, head_n))
        return -1;
    if (body->done && !ended)
        push_end(body, dst);
    return used;
}

int64_t body_forward(struct body *body, struct conn *dst, struct buffer *buffer, char *at, uint32_t n, char *floor, const char *head,
                     uint32_t head_n)
{
    if (body->from == FRAME_CHUNKED && !body->done)
        return forward_chunked(body, dst, buffer, at, n, floor, head, head_n);
    uint32_t take = 0;
    if (!body->done && body->from == FRAME_LENGTH) {
        take = n < body->left ? n : (uint32_t)body->left;
        body->left -= take;
        body->done = body->left == 0;
    } else if (!body->done) {
        take = n;                                   /* until close */
    }
    if (body->to == FRAME_CHUNKED && take) {        /* the bytes end where the read ended: the tail is free */
        char line[24];
        size_t line_n = chunked_write_size(take, line);
        memcpy(at + take, "\r\n", 2);
        if (at - floor < (ptrdiff_t)line_n)
            return -1;                              /* cannot be: a head or the headroom lies in front */
        at -= line_n;
        memcpy(at, line, line_n);
        return push_with_head(dst, buffer, at, take + (uint32_t)line_n + 2, floor, head, head_n) ? (int64_t)take : -1;
    }
    return push_with_head(dst, buffer, at, take, floor, head, head_n) ? (int64_t)take : -1;
}
