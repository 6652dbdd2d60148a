/* Request heads: parse, and judge what the fields say together.
 *
 * RFC 9112, 3 (request line, targets, Host), 6 (framing), 9 (connection); RFC 9110, 7.6 (forwarding), 10.1.1 (Expect).
 * Errors are found in the order of the bytes, so a head gets the same verdict however it was split on its way.
 */
#include "http_bytes.h"
#include "http_fields.h"

static enum http_method method_of(const char *at, size_t n)
{
    switch (n) {
    case 3:
        return memcmp(at, "GET", 3) == 0 ? HTTP_GET : memcmp(at, "PUT", 3) == 0 ? HTTP_PUT : HTTP_OTHER;
    case 4:
        return memcmp(at, "POST", 4) == 0 ? HTTP_POST : memcmp(at, "HEAD", 4) == 0 ? HTTP_HEAD : HTTP_OTHER;
    case 5:
        return memcmp(at, "PATCH", 5) == 0 ? HTTP_PATCH : memcmp(at, "TRACE", 5) == 0 ? HTTP_TRACE : HTTP_OTHER;
    case 6:
        return memcmp(at, "DELETE", 6) == 0 ? HTTP_DELETE : HTTP_OTHER;
    case 7:
        return memcmp(at, "OPTIONS", 7) == 0 ? HTTP_OPTIONS : memcmp(at, "CONNECT", 7) == 0 ? HTTP_CONNECT : HTTP_OTHER;
    default:
        return HTTP_OTHER;
    }
}

/* "HTTP/1.1" and the end of the line at p. > 0: their bytes. */
static int parse_version(const char *p, const char *end, struct http_head *head)
{
    static const char prefix[] = "HTTP/";
    if (end - p >= 10 && memcmp(p, "HTTP/1.1\r\n", 10) == 0) {
        head->minor = 1;
        return 10;
    }
    for (uint32_t i = 0; i < 8; i++) {
        if (p + i == end)
            return 0;
        if (i < 5 ? p[i] != prefix[i] : i == 6 ? p[i] != '.' : !is_digit(p[i]))
            return -400;
    }
    if (p[5] != '1')
        return -505;
    head->minor = p[7] != '0';
    const int line_end = parse_line_end(p + 8, end);
    return line_end > 0 ? 8 + line_end : line_end;
}

/* uri-host [ ":" port ] of RFC 3986, not empty, without user information. */
static bool host_is_valid(struct span host)
{
    const char *p = host.at, *end = host.at + host.n;
    if (host.n == 0 || host.n > HTTP_HOST_MAX)
        return false;
    if (*p == '[') {
        const char *from = ++p;
        while (p < end && (byte_is(*p, BYTE_HEX) || *p == ':' || *p == '.'))
            p++;
        if (p == end || *p != ']' || p == from)
            return false;
        p++;
    } else {
        for (; p < end && *p != ':'; p++) {
            if (*p == '%' && end - p > 2 && byte_is(p[1], BYTE_HEX) && byte_is(p[2], BYTE_HEX))
                p += 2;
            else if (!byte_is(*p, BYTE_HOST))
                return false;
        }
        if (p == host.at)
            return false;
    }
    if (p == end)
        return true;
    if (*p++ != ':')
        return false;
    uint32_t port = 0;
    for (; p < end; p++) {
        if (!is_digit(*p) || port > 65535)
            return false;
        port = port * 10 + (uint32_t)(*p - '0');
    }
    return port <= 65535;
}

/* Bytes of "http://" or "https://" in front of something; 0: another scheme, or none. */
static uint32_t scheme_bytes(struct span target)
{
    if (target.n > 7 && token_equals(target.at, "http", 4) && memcmp(target.at + 4, "://", 3) == 0)
        return 7;
    if (target.n > 8 && token_equals(target.at, "https", 5) && memcmp(target.at + 5, "://", 3) == 0)
        return 8;
    return 0;
}

/* Absolute-form becomes origin-form; its authority is the host, whatever Host says (RFC 9112, 3.2.2). */
static bool split_target(struct http_head *head)
{
    static const char slash[] = "/", asterisk[] = "*";
    struct span *target = &head->target;
    if (target->at[0] == '/')
        return true;
    if (target->n == 1 && target->at[0] == '*')
        return head->method == HTTP_OPTIONS;
    const uint32_t scheme = scheme_bytes(*target);
    if (scheme == 0)
        return false;
    const char *p = target->at + scheme, *end = target->at + target->n;
    head->host.at = p;
    while (p < end && *p != '/' && *p != '?')
        p++;
    head->host.n = (uint32_t)(p - head->host.at);
    *target = (struct span){ p, (uint32_t)(end - p) };
    if (target->n == 0)
        *target = (struct span){ head->method == HTTP_OPTIONS ? asterisk : slash, 1 };
    return host_is_valid(head->host);
}

/* The only coding we understand is "chunked", once: 0, or what to refuse the request with. */
static int judge_transfer_encoding(struct span value)
{
    if (span_equals(value, "chunked"))
        return 0;
    /* Empty elements are legal in lists, but here they are only ever an attempt to be read in two ways. */
    uint32_t elements = 0, commas = 0, chunked_at = 0;
    struct span list = value, coding;
    for (uint32_t i = 0; i < value.n; i++)
        commas += value.at[i] == ',';
    while (list_next(&list, &coding)) {
        elements++;
        if (!span_is_token(coding))
            return -400;
        if (span_equals(coding, "chunked")) {
            if (chunked_at != 0)
                return -400;
            chunked_at = elements;
        }
    }
    if (elements != commas + 1 || (chunked_at != 0 && chunked_at != elements))
        return -400;
    return -501;
}

/* What the recognised fields make of the request. 0, or minus the status. */
static int judge(struct http_head *head, const struct notes *notes)
{
    bool transfer_encoding = false, content_length = false, host = false, expect = false;
    bool websocket = false, connection = false, te_trailers = false;

    for (uint32_t i = 0; i < notes->n; i++) {
        struct field *f = &head->fields[notes->at[i].field];
        switch ((enum known_name)notes->at[i].name) {
        case NAME_HOST:
            if (host || !host_is_valid(f->value))
                return -400;
            host = true;
            f->kind = FIELD_HOST;
            if (head->host.n == 0)
                head->host = f->value;
            break;
        case NAME_CONTENT_LENGTH:
            if (content_length || !parse_length(f->value, &head->length))
                return -400;
            content_length = true;
            f->kind = FIELD_DROP;
            break;
        case NAME_TRANSFER_ENCODING: {
            if (transfer_encoding || head->minor == 0)
                return -400;
            const int verdict = judge_transfer_encoding(f->value);
            if (verdict != 0)
                return verdict;
            transfer_encoding = true;
            f->kind = FIELD_DROP;
            break;
        }
        case NAME_CONNECTION:
            connection = true;
            break;
        case NAME_UPGRADE:
            websocket = websocket || list_holds(f->value, "websocket");
            f->kind = FIELD_DROP;
            break;
        case NAME_TE:
            te_trailers = te_trailers || list_holds(f->value, "trailers");
            f->kind = FIELD_DROP;
            break;
        case NAME_EXPECT:
            if (f->value.n != 0 && !span_equals(f->value, "100-continue"))
                return -417;
            expect = expect || f->value.n != 0;
            f->kind = FIELD_DROP;
            break;
        case NAME_HOP_BY_HOP:
            f->kind = FIELD_DROP;
            break;
        case NAME_VIA:
            f->kind = FIELD_VIA;
            head->has_via = true;
            break;
        case NAME_X_FORWARDED_FOR:
            f->kind = FIELD_FORWARDED_FOR;
            break;
        case NAME_FORWARDED:
            f->kind = FIELD_FORWARDED;
            break;
        case NAME_MAX_FORWARDS:
            if (head->method == HTTP_OPTIONS || head->method == HTTP_TRACE) {
                uint64_t left;
                if (!parse_length(f->value, &left))
                    return -400;
                if (left == 0)          /* we are its final recipient (RFC 9110, 7.6.2), and do not serve TRACE */
                    return head->method == HTTP_OPTIONS ? -200 : -501;
                f->kind = FIELD_MAX_FORWARDS;
            }
            break;
        case NAME_WEBSOCKET_KEY:
            head->websocket_key = f->value;
            break;
        case NAME_WEBSOCKET_ACCEPT:
        case NAME_OTHER:
            break;
        }
    }
    if ((!host && head->minor == 1) || (transfer_encoding && content_length))
        return -400;
    head->framing = transfer_encoding ? FRAME_CHUNKED : content_length ? FRAME_LENGTH : FRAME_NONE;
    const bool body = transfer_encoding || (content_length && head->length > 0);
    if (body && head->method == HTTP_TRACE)
        return -400;
    /* Software of HTTP/1.0's time may not look for a body here, and take it for the next request. No client sends one. */
    if (body && head->minor == 0 && (head->method == HTTP_GET || head->method == HTTP_HEAD || head->method == HTTP_DELETE))
        return -400;

    struct connection_options asked = { 0 };
    if (connection) {
        asked = parse_connection(head, notes);
        if (asked.too_many)
            return -400;
    }
    head->keep_alive = !asked.close && (head->minor == 1 || asked.keep_alive);
    head->expect_continue = expect && body && head->minor == 1;
    head->has_trailer_te = te_trailers && head->minor == 1;
    head->upgrade_websocket = websocket && asked.upgrade && head->minor == 1 && head->method == HTTP_GET && !body &&
                              websocket_key_is_valid(head->websocket_key);
    return 0;
}

static int parse(const char *buf, const char *end, struct http_head *head)
{
    const char *p = buf;
    for (uint32_t i = 0; i < 2 && p < end && *p == '\r'; i++) {        /* RFC 9112, 2.2: robust against one too many CRLF */
        const int line_end = parse_line_end(p, end);
        if (line_end <= 0)
            return line_end;
        p += line_end;
    }

    const char *method = p;
    const char *method_end = end - method > HTTP_METHOD_MAX + 1 ? method + HTTP_METHOD_MAX + 1 : end;
    p = end - p >= 4 && memcmp(p, "GET ", 4) == 0 ? p + 3 : scan_token(p, buf, method_end);
    const uint32_t method_bytes = (uint32_t)(p - method);
    if (method_bytes > HTTP_METHOD_MAX)
        return -501;
    if (p == end)
        return 0;
    if (*p != ' ' || method_bytes == 0)
        return -400;
    head->method_name = (struct span){ method, method_bytes };
    head->method = (uint8_t)method_of(method, method_bytes);
    if (head->method == HTTP_CONNECT)
        return -501;
    p++;

    const char *target = p;
    const char *target_end = end - target > HTTP_TARGET_MAX + 1 ? target + HTTP_TARGET_MAX + 1 : end;
    p = scan_target(p, buf, target_end);
    const uint32_t target_bytes = (uint32_t)(p - target);
    if (target_bytes > HTTP_TARGET_MAX)
        return -414;
    if (p == end)
        return 0;
    if (*p != ' ' || target_bytes == 0)
        return -400;
    head->target = (struct span){ target, target_bytes };
    p++;

    const int version_bytes = parse_version(p, end, head);
    if (version_bytes <= 0)
        return version_bytes;
    p += version_bytes;

    head->status = 0;
    head->reason = head->host = head->websocket_key = (struct span){ NULL, 0 };
    head->length = 0;
    head->has_via = false;
    if (!split_target(head))
        return -400;

    struct notes notes;
    const int head_bytes = parse_fields(buf, p, end, head, &notes);
    if (head_bytes <= 0)
        return head_bytes;
    const int verdict = judge(head, &notes);
    return verdict != 0 ? verdict : head_bytes;
}

int http_parse_request(const char *buf, size_t n, struct http_head *head)
{
    const int got = parse(buf, buf + (n < HTTP_HEAD_MAX ? n : HTTP_HEAD_MAX), head);
    return got == 0 && n >= HTTP_HEAD_MAX ? -431 : got;
}
