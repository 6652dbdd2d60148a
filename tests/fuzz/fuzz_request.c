/* Fuzz target: request heads. What is accepted and written anew must be read again as the same message, by everybody. */
#include "tests/fuzz/fuzz.h"

static void check_written(const struct http_head *head, const struct forward *forward)
{
    static struct http_head again;
    const size_t room = (size_t)head->head_bytes + HTTP_WRITE_EXTRA;
    char *out = exact(NULL, room);
    const size_t n = http_write_request(head, forward, out, room);
    ASSERT(n > 0 && n <= room);
    ASSERT(http_write_request(head, forward, out, room - 1) == 0);
    if (n <= HTTP_HEAD_MAX && head->n_fields < HTTP_FIELDS_MAX - 8 && head->target.n < HTTP_TARGET_MAX) {
        char *copy = exact(out, n);
        const int got = http_parse_request(copy, n, &again);
        if (got < 0 && (head->method == HTTP_OPTIONS || head->method == HTTP_TRACE)) {
            ASSERT(got == (head->method == HTTP_OPTIONS ? -200 : -501));    /* Max-Forwards has come down to 0 */
            free(copy);
            free(out);
            return;
        }
        ASSERT(got == (int)n);
        ASSERT(again.minor == 1 && again.method == head->method && spans_equal(again.method_name, head->method_name));
        ASSERT(again.framing == head->framing && again.length == head->length);
        ASSERT(again.expect_continue == head->expect_continue && again.upgrade_websocket == head->upgrade_websocket);
        ASSERT(again.has_trailer_te == (head->has_trailer_te && !head->upgrade_websocket));
        ASSERT(head->host.n == 0 || spans_equal(again.host, head->host));
        free(copy);
    }
    /* No line end but CRLF, and one empty line, the last. */
    for (size_t i = 0; i < n; i++) {
        ASSERT(out[i] != '\n' || (i > 0 && out[i - 1] == '\r'));
        ASSERT(out[i] != '\r' || (i + 1 < n && out[i + 1] == '\n'));
        ASSERT(i + 4 >= n || memcmp(out + i, "\r\n\r\n", 4) != 0);
    }
    ASSERT(memcmp(out + n - 4, "\r\n\r\n", 4) == 0);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct http_head head, part;
    memset(&head, 0xa5, sizeof head);   /* nothing is read that the parser did not write */
    char *bytes = exact(data, n);
    const int got = http_parse_request(bytes, n, &head);
    ASSERT(got <= (int)n && got <= HTTP_HEAD_MAX);
    ASSERT(got >= 0 || got == -400 || got == -414 || got == -417 || got == -431 || got == -501 || got == -505 || got == -200);

    /* However it was split, the verdict is the same: a piece is either not yet whole, or says what the whole says. */
    const size_t cut = n > 0 ? (data[0] * 251u + data[n - 1] * 17u + n) % (n + 1) : 0;
    char *piece = exact(data, cut);
    const int early = http_parse_request(piece, cut, &part);
    ASSERT(early == 0 || early == got);
    ASSERT(got <= 0 || cut < (size_t)got || early == got);
    free(piece);

    if (got > 0) {
        ASSERT(head.head_bytes == (uint32_t)got && head.n_fields <= HTTP_FIELDS_MAX);
        ASSERT(head.framing == FRAME_NONE || head.framing == FRAME_LENGTH || head.framing == FRAME_CHUNKED);
        ASSERT(head.length <= INT64_MAX && (head.host.n > 0 || head.minor == 0));
        check_fields(bytes, (size_t)got, &head);
        check_written(&head, &(struct forward){ .client = { "127.0.0.1", 9 }, .default_host = { "server:1", 8 } });
        check_written(&head, &(struct forward){ .append = true, .https = true, .client = { "::1", 3 }, .default_host = { "s", 1 } });
    }
    free(bytes);
    return 0;
}
