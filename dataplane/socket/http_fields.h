/* The field section of a head: split into lines, names recognised. Private to the HTTP files.
 *
 * The split is the same for requests and responses, the judgement is not: parse_fields() notes the fields that mean something
 * to a proxy, and http_request.c and http_response.c walk the notes.
 */
#ifndef VICKREY_HTTP_FIELDS_H
#define VICKREY_HTTP_FIELDS_H

#include "http.h"

/* Field names that a proxy has to know. */
enum known_name {
    NAME_OTHER = 0,
    NAME_HOST, NAME_CONTENT_LENGTH, NAME_TRANSFER_ENCODING, NAME_CONNECTION, NAME_UPGRADE, NAME_TE, NAME_EXPECT,
    NAME_HOP_BY_HOP,                    /* Keep-Alive, Proxy-*, Trailer, HTTP2-Settings: of this connection alone */
    NAME_VIA, NAME_X_FORWARDED_FOR, NAME_FORWARDED, NAME_MAX_FORWARDS, NAME_WEBSOCKET_KEY, NAME_WEBSOCKET_ACCEPT
};

/* The fields of a head that parse_fields() recognised, in order. */
struct notes {
    uint32_t n;
    struct {
        uint8_t name;                   /* enum known_name */
        uint8_t field;                  /* index into head->fields */
    } at[HTTP_FIELDS_MAX];
};

/* Split the lines from p to the empty line into head->fields (kind: FIELD_PASS) and notes. start: where the head begins.
 * > 0: bytes up to and with the empty line, from start; 0: not yet whole; -400, -431. */
int parse_fields(const char *start, const char *p, const char *end, struct http_head *head, struct notes *notes);

enum known_name field_name_known(const char *at, size_t n);

/* A line that is to end at p does: > 0 bytes of CRLF, 0 not yet whole, -400. */
static inline int parse_line_end(const char *p, const char *end)
{
    if (p == end)
        return 0;
    if (p[0] != '\r')
        return -400;
    if (end - p < 2)
        return 0;
    return p[1] == '\n' ? 2 : -400;
}

/* Takes the next element of a comma-separated list off *list, blanks around it removed. False at its end. */
bool list_next(struct span *list, struct span *element);
/* Does a list hold this lower-case token? */
bool list_holds(struct span list, const char *token);
bool span_is_token(struct span s);
bool span_equals(struct span s, const char *lower);

/* One Content-Length: digits only, below 2^63. */
bool parse_length(struct span value, uint64_t *length);

/* What the Connection fields of a head ask for. */
struct connection_options {
    bool close, keep_alive, upgrade;
    bool too_many;                      /* fields named: a walk over all of them for each is bounded, the head is refused */
};

/* Read all Connection fields, mark them FIELD_DROP, and with them every field they name that would have passed. What is ours to
 * write (Host, the framing, Via, X-Forwarded-*) cannot be taken away like this. An option that is no token counts as close. */
struct connection_options parse_connection(struct http_head *head, const struct notes *notes);

/* A 16-byte nonce in base64 (RFC 6455, 4.1). */
bool websocket_key_is_valid(struct span key);

#endif
