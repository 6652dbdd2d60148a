/* Fuzz target: chunked bodies. Read whole and read in pieces, with and without a place for trailers: the same body, the same
 * end; what is written in chunks again is read back. The first byte of the input says how large the pieces are. */
#include "tests/fuzz/fuzz.h"

#define TRAILER_ROOM 64

struct body {
    int      verdict;                   /* 1 done, 0 more to come, -1 malformed */
    size_t   consumed, n, trailer_n;
    char    *bytes;
    char     trailer[TRAILER_ROOM];
};

static void read_body(const uint8_t *data, size_t n, size_t step, bool keep_trailers, struct body *body)
{
    struct chunked c;
    struct span span;
    chunked_begin(&c);
    *body = (struct body){ .bytes = exact(NULL, n) };
    while (body->consumed < n && !c.done) {
        const size_t left = n - body->consumed, now = left < step ? left : step;
        char *piece = exact(data + body->consumed, now);
        size_t at = 0;
        while (at < now && !c.done) {
            const int64_t got = chunked_read(&c, piece + at, now - at, &span);
            if (got < 0) {
                ASSERT(got == -1);
                ASSERT(chunked_read(&c, piece, now, &span) == -1);
                free(piece);
                body->verdict = -1;
                return;
            }
            ASSERT(got > 0 && (size_t)got <= now - at);
            ASSERT(span.n == 0 || (span.at >= piece + at && span.at + span.n <= piece + at + got));
            if (span.n > 0)
                memcpy(body->bytes + body->n, span.at, span.n);
            body->n += span.n;
            at += (size_t)got;
            if (c.last && !c.done && keep_trailers && c.trailer == NULL) {
                ASSERT(c.trailer_bytes == 0);
                c.trailer = body->trailer;
                c.trailer_room = TRAILER_ROOM;
            }
        }
        free(piece);
        body->consumed += at;
    }
    body->verdict = c.done;
    body->trailer_n = c.trailer_n;
    ASSERT(body->trailer_n <= TRAILER_ROOM && (body->trailer_n == 0 || keep_trailers));
}

/* Kept trailers are field lines, and none of them frames or routes. */
static void check_trailers(const struct body *body)
{
    static const char line[] = "HTTP/1.1 200 OK\r\n";
    static struct http_head head;
    const size_t n = sizeof line - 1 + body->trailer_n + 2;
    char *bytes = exact(NULL, n);
    memcpy(bytes, line, sizeof line - 1);
    memcpy(bytes + sizeof line - 1, body->trailer, body->trailer_n);
    memcpy(bytes + n - 2, "\r\n", 2);
    ASSERT(http_parse_response(bytes, n, HTTP_GET, &head) == (int)n);
    ASSERT(head.framing == FRAME_CLOSE);
    for (uint32_t i = 0; i < head.n_fields; i++)
        ASSERT(head.fields[i].kind == FIELD_PASS);
    free(bytes);
}

static void check_again(const struct body *body)
{
    char *out = exact(NULL, body->n + 25);
    size_t n = 0;
    if (body->n > 0) {
        n = chunked_write_size(body->n, out);
        ASSERT(n <= 18);
        memcpy(out + n, body->bytes, body->n);
        n += body->n;
        memcpy(out + n, "\r\n", 2);
        n += 2;
    }
    memcpy(out + n, "0\r\n\r\n", 5);
    n += 5;
    struct body again;
    read_body((const uint8_t *)out, n, n, false, &again);
    ASSERT(again.verdict == 1 && again.consumed == n && again.n == body->n && memcmp(again.bytes, body->bytes, body->n) == 0);
    free(again.bytes);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0)
        return 0;
    const size_t step = 1 + data[0] % 32;
    data++;
    n--;
    struct body whole, pieces;
    read_body(data, n, n ? n : 1, true, &whole);
    read_body(data, n, step, true, &pieces);
    ASSERT(whole.verdict == pieces.verdict);
    if (whole.verdict >= 0)
        ASSERT(whole.consumed == pieces.consumed && whole.n == pieces.n && memcmp(whole.bytes, pieces.bytes, whole.n) == 0);
    if (whole.verdict == 1) {
        ASSERT(whole.trailer_n == pieces.trailer_n && memcmp(whole.trailer, pieces.trailer, whole.trailer_n) == 0);
        check_trailers(&whole);
        check_again(&whole);
    }
    free(whole.bytes);
    free(pieces.bytes);
    return 0;
}
