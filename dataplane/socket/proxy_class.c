/* SLA class and route of a request: how much its delay matters, and what it is expected to cost.
 *
 * The class is the one that the settings' header names, where the client may say so; else its route's; else the default. A
 * route is a prefix of the target as it came: nothing is decoded or normalised, and the longest that fits wins.
 */
#include "proxy.h"

#include <string.h>
#include <strings.h>

static uint8_t route_of(const struct settings *settings, struct span target)
{
    uint32_t longest = 0, found = 0;
    for (uint32_t i = 0; i < settings->n_routes && i < ROUTES_MAX; i++) {
        const struct route *r = &settings->routes[i];
        uint32_t n = r->prefix_bytes;
        if (n > longest && n <= target.n && n <= PREFIX_BYTES && memcmp(r->prefix, target.at, n) == 0) {
            longest = n;
            found = i + 1;
        }
    }
    return (uint8_t)found;
}

/* The class of this name, SLA_CLASSES when there is none. */
static uint32_t class_named(struct span name)
{
    static const struct span names[SLA_CLASSES] = {
        [SLA_GOLD] = {"gold", 4}, [SLA_SILVER] = {"silver", 6}, [SLA_BRONZE] = {"bronze", 6}};
    uint32_t c = 0;
    while (c < SLA_CLASSES && (name.n != names[c].n || strncasecmp(name.at, names[c].at, name.n) != 0))
        c++;
    return c;
}

void class_of_request(struct session *s, const struct http_head *head)
{
    const struct settings *settings = s->worker->settings;
    uint32_t sla = settings->sla_default;
    if (settings->n_routes) {
        s->route = route_of(settings, head->target);
        if (s->route)
            sla = settings->routes[s->route - 1].sla;
    }
    if (settings->sla_header_bytes && (s->trusted || settings->sla_any_client)) {
        uint32_t named = class_named(http_field(head, settings->sla_header, settings->sla_header_bytes));
        if (named < SLA_CLASSES)
            sla = named;
    }
    s->sla = (uint8_t)sla;
}
