/* Response heads: parse, and judge what the fields say together.
 *
 * RFC 9112, 4 (status line), 6.3 (length of the body); RFC 9110, 15 (status codes). What cannot be framed beyond doubt is not
 * forwarded: -502.
 */
#include "http_bytes.h"
#include "http_fields.h"

/* "HTTP/1.1 200 " and the reason, to the end of the line. > 0: bytes; the space after the code may be missing when no reason
 * follows, as many servers send it. */
static int parse_status_line(const char *p, const char *end, struct http_head *head)
{
    static const char form[] = "HTTP/1.d ddd";
    const char *start = p;
    for (uint32_t i = 0; i < sizeof form - 1; i++, p++) {
        if (p == end)
            return 0;
        if (form[i] == 'd' ? !is_digit(*p) : *p != form[i])
            return -502;
    }
    head->minor = start[7] != '0';
    head->status = (uint16_t)((start[9] - '0') * 100 + (start[10] - '0') * 10 + (start[11] - '0'));
    if (head->status < 100 || head->status > 599)
        return -502;
    head->reason = (struct span){ p, 0 };
    if (p < end && *p == ' ') {
        const char *reason = ++p;
        p = scan_value(p, start, end);
        head->reason = (struct span){ reason, (uint32_t)(p - reason) };
    }
    const int line_end = parse_line_end(p, end);
    return line_end > 0 ? (int)(p - start) + line_end : line_end;
}

/* What the recognised fields make of the response. 0 or -502. */
static int judge(struct http_head *head, const struct notes *notes, enum http_method request_method)
{
    bool transfer_encoding = false, connection = false, websocket = false;
    struct field *length = NULL;

    for (uint32_t i = 0; i < notes->n; i++) {
        struct field *f = &head->fields[notes->at[i].field];
        switch ((enum known_name)notes->at[i].name) {
        case NAME_CONTENT_LENGTH:
            if (length || !parse_length(f->value, &head->length))
                return -502;
            length = f;
            f->kind = FIELD_DROP;
            break;
        case NAME_TRANSFER_ENCODING:
            if (transfer_encoding || head->minor == 0 || !span_equals(f->value, "chunked"))
                return -502;
            transfer_encoding = true;
            f->kind = FIELD_DROP;
            break;
        case NAME_CONNECTION:
            connection = true;
            break;
        case NAME_UPGRADE:
            websocket = websocket || span_equals(f->value, "websocket");
            f->kind = FIELD_DROP;
            break;
        case NAME_TE:
        case NAME_HOP_BY_HOP:
            f->kind = FIELD_DROP;
            break;
        case NAME_VIA:
            f->kind = FIELD_VIA;
            head->has_via = true;
            break;
        case NAME_WEBSOCKET_ACCEPT:
            head->websocket_key = f->value;
            break;
        default:
            break;
        }
    }
    if (transfer_encoding && length)
        return -502;

    struct connection_options asked = { 0 };
    if (connection) {
        asked = parse_connection(head, notes);
        if (asked.too_many)
            return -502;
    }
    head->keep_alive = !asked.close && (head->minor == 1 || asked.keep_alive);

    const bool announces_only = request_method == HTTP_HEAD || head->status == 304;
    if (announces_only || head->status < 200 || head->status == 204) {
        head->framing = FRAME_NONE;
        if (announces_only && length && head->status >= 200 && head->status != 204)
            length->kind = FIELD_CONTENT_LENGTH;
        else if (!announces_only && (transfer_encoding || head->length > 0))
            head->keep_alive = false;   /* it says that a body follows where none can: what comes next is not to be trusted */
    } else if (transfer_encoding) {
        head->framing = FRAME_CHUNKED;
    } else if (length) {
        head->framing = FRAME_LENGTH;
    } else {
        head->framing = FRAME_CLOSE;
        head->keep_alive = false;
    }
    if (head->status == 101) {          /* nothing but websocket is ever asked for */
        head->upgrade_websocket = websocket && asked.upgrade && head->minor == 1 && head->websocket_key.n > 0 &&
                                  request_method == HTTP_GET;
        if (!head->upgrade_websocket)
            return -502;
    }
    return 0;
}

static int parse(const char *buf, const char *end, enum http_method request_method, struct http_head *head)
{
    head->method = HTTP_OTHER;
    head->method_name = head->target = head->host = head->websocket_key = (struct span){ NULL, 0 };
    head->length = 0;
    head->expect_continue = head->upgrade_websocket = head->has_via = head->has_trailer_te = false;

    const int line_bytes = parse_status_line(buf, end, head);
    if (line_bytes <= 0)
        return line_bytes;
    struct notes notes;
    const int head_bytes = parse_fields(buf, buf + line_bytes, end, head, &notes);
    if (head_bytes <= 0)
        return head_bytes;
    const int verdict = judge(head, &notes, request_method);
    return verdict != 0 ? verdict : head_bytes;
}

int http_parse_response(const char *buf, size_t n, enum http_method request_method, struct http_head *head)
{
    const int got = parse(buf, buf + (n < HTTP_HEAD_MAX ? n : HTTP_HEAD_MAX), request_method, head);
    return got < 0 || (got == 0 && n >= HTTP_HEAD_MAX) ? -502 : got;
}
