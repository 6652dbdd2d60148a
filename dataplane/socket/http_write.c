/* Heads written anew: what was understood goes on, in our own words; nothing else does.
 *
 * RFC 9110, 7.6 (forwarding: Connection, Via, Max-Forwards); RFC 9112, 6 (framing). The framing fields come from the head's
 * framing alone, so what we send cannot be read in another way than it was.
 *
 * Lines that stood in the received head just as they are written are copied together, neighbours in one piece.
 */
#include "http_bytes.h"
#include "http_fields.h"

static inline char *put(char *out, const char *from, size_t n)
{
    memcpy(out, from, n);
    return out + n;
}

#define PUT(out, literal) put(out, literal, sizeof(literal) - 1)

static inline char *put_span(char *out, struct span s)
{
    return s.n > 0 ? put(out, s.at, s.n) : out;
}

static char *put_number(char *out, uint64_t n)
{
    char digits[20];
    size_t at = sizeof digits;
    do
        digits[--at] = (char)('0' + n % 10);
    while ((n /= 10) != 0);
    return put(out, digits + at, sizeof digits - at);
}

static char *put_content_length(char *out, uint64_t n)
{
    out = PUT(out, "Content-Length: ");
    out = put_number(out, n);
    return PUT(out, "\r\n");
}

static char *put_field(char *out, const struct field *f)
{
    out = put_span(out, f->name);
    out = PUT(out, ": ");
    out = put_span(out, f->value);
    return PUT(out, "\r\n");
}

/* All fields that are forwarded as they are. */
static char *put_passed(char *out, const struct http_head *head)
{
    const char *from = NULL, *to = NULL;    /* plain lines that follow one another, not yet copied */
    for (uint32_t i = 0; i < head->n_fields; i++) {
        const struct field *f = &head->fields[i];
        if (f->kind != FIELD_PASS && f->kind != FIELD_VIA)
            continue;
        if (f->name.at != to || !f->plain) {
            if (from != to)
                out = put(out, from, (size_t)(to - from));
            from = to = f->name.at;
        }
        if (f->plain)
            to = f->value.at + f->value.n + 2;
        else {
            out = put_field(out, f);
            from = to = NULL;
        }
    }
    return from != to ? put(out, from, (size_t)(to - from)) : out;
}

static char *put_via(char *out, const struct http_head *head)
{
    return head->minor ? PUT(out, "Via: 1.1 vickrey\r\n") : PUT(out, "Via: 1.0 vickrey\r\n");
}

static bool has_forwarded(const struct http_head *head, const char *name)
{
    for (uint32_t i = 0; i < head->n_fields; i++)
        if (head->fields[i].kind == FIELD_FORWARDED && span_equals(head->fields[i].name, name))
            return true;
    return false;
}

/* X-Forwarded-For, -Proto and -Host. From a client that is no trusted proxy nothing of the kind is believed. */
static char *put_forwarded(char *out, const struct http_head *head, const struct forward *forward)
{
    static const char for_name[] = "X-Forwarded-For: ";
    char *line = out;
    if (forward->append)
        for (uint32_t i = 0; i < head->n_fields; i++) {
            const struct field *f = &head->fields[i];
            if (f->kind == FIELD_FORWARDED_FOR && f->value.n > 0) {
                out = out == line ? PUT(out, for_name) : PUT(out, ", ");
                out = put_span(out, f->value);
            }
        }
    if (forward->client.n > 0) {
        out = out == line ? PUT(out, for_name) : PUT(out, ", ");
        out = put_span(out, forward->client);
    }
    if (out != line)
        out = PUT(out, "\r\n");
    if (forward->append)
        for (uint32_t i = 0; i < head->n_fields; i++)
            if (head->fields[i].kind == FIELD_FORWARDED)
                out = put_field(out, &head->fields[i]);
    if (!forward->append || !has_forwarded(head, "x-forwarded-proto"))
        out = forward->https ? PUT(out, "X-Forwarded-Proto: https\r\n") : PUT(out, "X-Forwarded-Proto: http\r\n");
    if (head->host.n > 0 && (!forward->append || !has_forwarded(head, "x-forwarded-host"))) {
        out = PUT(out, "X-Forwarded-Host: ");
        out = put_span(out, head->host);
        out = PUT(out, "\r\n");
    }
    return out;
}

/* The least of all Max-Forwards counts; one less goes on. */
static char *put_max_forwards(char *out, const struct http_head *head)
{
    uint64_t least = UINT64_MAX, n;
    for (uint32_t i = 0; i < head->n_fields; i++)
        if (head->fields[i].kind == FIELD_MAX_FORWARDS && parse_length(head->fields[i].value, &n) && n < least)
            least = n;
    if (least == UINT64_MAX || least == 0)
        return out;
    out = PUT(out, "Max-Forwards: ");
    out = put_number(out, least - 1);
    return PUT(out, "\r\n");
}

size_t http_write_request(const struct http_head *head, const struct forward *forward, char *out, size_t room)
{
    if (room < (size_t)head->head_bytes + HTTP_WRITE_EXTRA || forward->client.n > 64 || forward->default_host.n > HTTP_HOST_MAX)
        return 0;
    char *start = out;
    out = put_span(out, head->method_name);
    *out++ = ' ';
    if (head->target.n == 0 || head->target.at[0] == '?')
        *out++ = '/';
    out = put_span(out, head->target);
    out = PUT(out, " HTTP/1.1\r\nHost: ");
    out = put_span(out, head->host.n > 0 ? head->host : forward->default_host);
    out = PUT(out, "\r\n");
    out = put_passed(out, head);
    if (head->framing == FRAME_CHUNKED)
        out = PUT(out, "Transfer-Encoding: chunked\r\n");
    else if (head->framing == FRAME_LENGTH)
        out = put_content_length(out, head->length);
    if (head->expect_continue)
        out = PUT(out, "Expect: 100-continue\r\n");
    if (head->upgrade_websocket)
        out = PUT(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    else if (head->has_trailer_te)
        out = PUT(out, "Connection: TE\r\nTE: trailers\r\n");
    if (head->method == HTTP_OPTIONS || head->method == HTTP_TRACE)
        out = put_max_forwards(out, head);
    out = put_forwarded(out, head, forward);
    out = put_via(out, head);
    out = PUT(out, "\r\n");
    return (size_t)(out - start);
}

size_t http_write_response(const struct http_head *head, bool keep_alive, unsigned client_minor, enum framing framing,
                           char *out, size_t room)
{
    if (room < (size_t)head->head_bytes + HTTP_WRITE_EXTRA)
        return 0;
    char *start = out;
    out = PUT(out, "HTTP/1.1 ");
    out = put_number(out, head->status);
    *out++ = ' ';
    out = put_span(out, head->reason);
    out = PUT(out, "\r\n");
    out = put_passed(out, head);
    if (framing == FRAME_CHUNKED)
        out = PUT(out, "Transfer-Encoding: chunked\r\n");
    else if (framing == FRAME_LENGTH)
        out = put_content_length(out, head->length);
    else if (framing == FRAME_NONE)
        for (uint32_t i = 0; i < head->n_fields; i++)
            if (head->fields[i].kind == FIELD_CONTENT_LENGTH)
                out = put_content_length(out, head->length);
    if (head->upgrade_websocket)
        out = PUT(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    else if (head->status >= 200 && !keep_alive)
        out = PUT(out, "Connection: close\r\n");
    else if (head->status >= 200 && client_minor == 0)
        out = PUT(out, "Connection: keep-alive\r\n");
    out = put_via(out, head);
    out = PUT(out, "\r\n");
    return (size_t)(out - start);
}

static const char *reason_of(unsigned status)
{
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 417: return "Expectation Failed";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "Error";
    }
}

size_t http_write_error(unsigned status, bool keep_alive, bool head_only, unsigned retry_after_s, char *out, size_t room)
{
    const char *reason = reason_of(status);
    const size_t reason_bytes = strlen(reason);
    if (room < 512 || status < 100 || status > 599)
        return 0;
    char *start = out;
    out = PUT(out, "HTTP/1.1 ");
    out = put_number(out, status);
    *out++ = ' ';
    out = put(out, reason, reason_bytes);
    out = PUT(out, "\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\n");
    out = put_content_length(out, 3 + 1 + reason_bytes + 1);
    if (retry_after_s > 0) {
        out = PUT(out, "Retry-After: ");
        out = put_number(out, retry_after_s);
        out = PUT(out, "\r\n");
    }
    out = keep_alive ? PUT(out, "Connection: keep-alive\r\n\r\n") : PUT(out, "Connection: close\r\n\r\n");
    if (!head_only) {
        out = put_number(out, status);
        *out++ = ' ';
        out = put(out, reason, reason_bytes);
        *out++ = '\n';
    }
    return (size_t)(out - start);
}
