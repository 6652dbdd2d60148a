/* Fuzz target: response heads, of an answer to each kind of request, written for each kind of client. */
#include "tests/fuzz/fuzz.h"

static void check_written(const struct http_head *head, enum http_method method)
{
    static struct http_head again;
    const size_t room = (size_t)head->head_bytes + HTTP_WRITE_EXTRA;
    char *out = exact(NULL, room);
    for (unsigned minor = 0; minor < 2; minor++) {
        const enum framing framing = minor == 0 && head->framing == FRAME_CHUNKED ? FRAME_CLOSE : (enum framing)head->framing;
        const bool keep = head->keep_alive && framing != FRAME_CLOSE;
        const size_t n = http_write_response(head, keep, minor, framing, out, room);
        ASSERT(n > 0 && n <= room && memcmp(out + n - 4, "\r\n\r\n", 4) == 0);
        ASSERT(http_write_response(head, keep, minor, framing, out, room - 1) == 0);
        if (n > HTTP_HEAD_MAX || head->n_fields >= HTTP_FIELDS_MAX - 8)
            continue;
        char *copy = exact(out, n);
        ASSERT(http_parse_response(copy, n, method, &again) == (int)n);
        ASSERT(again.status == head->status && again.framing == framing && spans_equal(again.reason, head->reason));
        ASSERT(head->framing != FRAME_LENGTH || again.length == head->length);
        ASSERT(head->status < 200 || again.keep_alive == keep);
        ASSERT(again.upgrade_websocket == head->upgrade_websocket);
        free(copy);
    }
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct http_head head, part;
    static const enum http_method methods[] = { HTTP_GET, HTTP_HEAD, HTTP_POST };
    char *bytes = exact(data, n);
    const size_t cut = n > 0 ? (data[0] * 251u + data[n - 1] * 17u + n) % (n + 1) : 0;
    char *piece = exact(data, cut);
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        memset(&head, 0xa5, sizeof head);   /* nothing is read that the parser did not write */
        const int got = http_parse_response(bytes, n, methods[i], &head);
        ASSERT(got == -502 || (got >= 0 && got <= (int)n && got <= HTTP_HEAD_MAX));
        const int early = http_parse_response(piece, cut, methods[i], &part);
        ASSERT(early == 0 || early == got);
        ASSERT(got <= 0 || cut < (size_t)got || early == got);
        if (got > 0) {
            ASSERT(head.head_bytes == (uint32_t)got && head.n_fields <= HTTP_FIELDS_MAX && head.length <= INT64_MAX);
            ASSERT(head.status >= 100 && head.status <= 599);
            ASSERT(head.framing != FRAME_CLOSE || !head.keep_alive);
            ASSERT(methods[i] != HTTP_HEAD || head.framing == FRAME_NONE);
            check_fields(bytes, (size_t)got, &head);
            check_written(&head, methods[i]);
        }
    }
    free(piece);
    free(bytes);
    return 0;
}
