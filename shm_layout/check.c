/* Checks settings and directives as their readers must: whatever the bytes are, what passes may be used as index and divisor.
 *
 * The control plane calls it before it publishes, the data plane on its private copy before it adopts. Nothing of the
 * payload is believed before it was compared with the length or the reader's own limits.
 */
#include "access.h"

#include <float.h>
#include <stdbool.h>
#include <string.h>

#define TIMEOUT_LIMIT_NS (1ULL << 62) /* so that now + timeout does not wrap */

static int refuse(uint32_t *reason, uint32_t why)
{
    *reason = why;
    return why == REJECT_BOUNDS ? -SEGMENT_EBOUNDS : -SEGMENT_EVALUE;
}

static bool ends_in_nul(const char *name)
{
    return memchr(name, '\0', NAME_BYTES) != NULL;
}

/* Finite and >= 0; false for a NaN. */
static bool is_amount(float value)
{
    return value >= 0.0f && value <= FLT_MAX;
}

static bool server_entry_is_valid(const struct server_entry *s)
{
    return s->state <= SERVER_MAINT && s->health <= HEALTH_EJECTED && s->weight <= 256u && s->backup <= 1u &&
           s->address_bytes <= ADDRESS_BYTES && s->slowstart_ns <= TIMEOUT_LIMIT_NS && ends_in_nul(s->name) &&
           (s->id == 0) == (s->state == SERVER_FREE) && is_amount(s->capacity);
}

static bool settings_are_valid(const struct settings *s)
{
    const uint64_t durations[] = {
        s->stale_after_ns, s->timeout_http_request_ns, s->timeout_http_keep_alive_ns, s->timeout_connect_ns,
        s->timeout_client_ns, s->timeout_server_ns, s->timeout_queue_ns, s->timeout_tunnel_ns, s->drain_deadline_ns,
    };
    for (size_t i = 0; i < sizeof durations / sizeof *durations; i++)
        if (durations[i] > TIMEOUT_LIMIT_NS)
            return false;
    for (uint32_t i = 0; i < s->n_trusted; i++)
        if (s->trusted[i].prefix_bits > 128u)
            return false;
    for (uint32_t i = 0; i < s->n_routes; i++)
        if (s->routes[i].prefix_bytes > PREFIX_BYTES || s->routes[i].sla >= SLA_CLASSES || !is_amount(s->routes[i].load))
            return false;
    if (s->sla_default >= SLA_CLASSES || s->sla_header_bytes > HEADER_BYTES)
        return false;
    return s->fallback_rule < RULES && s->fallback_curve <= FALLBACK_GSED && s->fallback_choices <= SERVERS_LIMIT &&
           s->retry_budget_percent <= 100u && s->log_targets <= 1u && s->accepting <= 1u;
}

int segment_check_settings(const void *payload, uint64_t length, uint32_t max_servers, uint32_t *reason)
{
    const struct settings *s = payload;
    const struct server_entry *servers = (const struct server_entry *)(const void *)(s + 1);
    if (((uintptr_t)payload & 7u) != 0 || length < sizeof *s)
        return refuse(reason, REJECT_BOUNDS);
    if (s->n_slots > max_servers || s->n_slots > SERVERS_LIMIT || s->n_trusted > TRUSTED_MAX || s->n_routes > ROUTES_MAX ||
        length != sizeof *s + s->n_slots * (uint64_t)sizeof *servers)
        return refuse(reason, REJECT_BOUNDS);
    if (!settings_are_valid(s))
        return refuse(reason, REJECT_VALUE);
    for (uint32_t i = 0; i < s->n_slots; i++)
        if (!server_entry_is_valid(servers + i))
            return refuse(reason, REJECT_VALUE);
    return 0;
}

/* A directive's array of n elements: absent (offset 0) or wholly inside the payload, behind its head, on 8 bytes. */
static bool array_is_inside(uint64_t length, uint64_t offset, uint64_t n, uint64_t element_bytes)
{
    if (offset == 0)
        return true;
    /* n < 2^32 and elements are small: the product does not wrap */
    return offset % 8u == 0 && offset >= sizeof(struct directive) && offset <= length && n * element_bytes <= length - offset;
}

static const void *array_at(const struct directive *d, uint64_t offset)
{
    return (const char *)d + offset;
}

static bool weights_are_valid(const float *weights, uint32_t n)
{
    bool bad = false;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        bad |= !is_amount(weights[i]);
        sum += (double)weights[i];
    }
    return !bad && sum > 0;
}

static bool curve_is_valid(const float *curve)
{
    /* Comparisons are gathered, not branched on, so that the compiler makes vectors of them. A NaN fails its comparison. */
    unsigned bad = !(curve[0] >= 0.0f) | !(curve[CURVE_POINTS - 1] <= FLT_MAX);
    for (uint32_t k = 1; k < CURVE_POINTS; k++)
        bad |= !(curve[k] >= curve[k - 1]);
    return bad == 0;
}

static bool slots_are_below(const uint32_t *slots, uint32_t count, uint32_t n_servers)
{
    unsigned bad = 0;
    for (uint32_t i = 0; i < count; i++)
        bad |= slots[i] >= n_servers;
    return bad == 0;
}

/* id 0: a free slot, whose row only has to be numbers. */
static bool classic_is_valid(const struct classic_server *c, uint64_t id)
{
    return is_amount(c->capacity) && (c->capacity > 0.0f || id == 0) && is_amount(c->sensitivity) &&
           is_amount(c->risk_aversion) && is_amount(c->target_load_ratio) && c->target_load_ratio <= 1.0f &&
           is_amount(c->neural) && is_amount(c->shapley);
}

/* Does the directive bring what its rule reads? */
static bool rule_is_fed(const struct directive *d)
{
    switch (d->rule) {
    case RULE_MAGLEV:
        return d->off_table != 0 && d->table_slots > 0;
    case RULE_ALIAS:
        return d->off_alias_keep != 0 && d->off_alias_other != 0;
    case RULE_WRR:
        return d->off_weights != 0;
    case RULE_BIDS:
        return d->off_curves != 0;
    default:
        return d->off_classic != 0;
    }
}

int segment_check_directive(const void *payload, uint64_t length, uint32_t max_servers, uint32_t max_table, uint32_t *reason)
{
    const struct directive *d = payload;
    if (((uintptr_t)payload & 7u) != 0 || length < sizeof *d)
        return refuse(reason, REJECT_BOUNDS);
    uint32_t n = d->n_servers;
    if (n == 0 || n > max_servers || n > SERVERS_LIMIT || d->table_slots > max_table)
        return refuse(reason, REJECT_BOUNDS);
    if (!array_is_inside(length, d->off_ids, n, 8) || !array_is_inside(length, d->off_weights, n, sizeof(float)) ||
        !array_is_inside(length, d->off_curves, n, CURVE_POINTS * sizeof(float)) ||
        !array_is_inside(length, d->off_alias_keep, n, 4) || !array_is_inside(length, d->off_alias_other, n, 4) ||
        !array_is_inside(length, d->off_table, d->table_slots, 4) ||
        !array_is_inside(length, d->off_classic, n, sizeof(struct classic_server)) ||
        !array_is_inside(length, d->off_reserve, CURVE_POINTS, sizeof(float)) || d->n_routes > ROUTES_MAX + 1u ||
        !array_is_inside(length, d->off_loads, d->n_routes, SLA_CLASSES * sizeof(float)) ||
        !array_is_inside(length, d->off_aging, n, sizeof(struct aging)))
        return refuse(reason, REJECT_BOUNDS);
    if (d->off_ids == 0 || (d->off_table == 0 && d->table_slots != 0) || (d->off_loads == 0 && d->n_routes != 0))
        return refuse(reason, REJECT_BOUNDS);
    if (d->rule >= RULES || !ends_in_nul(d->policy) || d->choices > SERVERS_LIMIT || d->enforcing_percent > 100u ||
        !is_amount(d->classic_noise) || !is_amount(d->classic_reserve) || !is_amount(d->coalition_above) ||
        !is_amount(d->coalition_below))
        return refuse(reason, REJECT_VALUE);
    if (!rule_is_fed(d))
        return refuse(reason, REJECT_BOUNDS);

    for (uint32_t c = 0; c < SLA_CLASSES; c++)
        if (!is_amount(d->sla_reserve[c]))
            return refuse(reason, REJECT_VALUE);
    if (d->off_reserve != 0 && !curve_is_valid(array_at(d, d->off_reserve)))
        return refuse(reason, REJECT_VALUE);
    if (d->off_loads != 0) {
        const float *loads = array_at(d, d->off_loads);
        for (uint32_t i = 0; i < d->n_routes * SLA_CLASSES; i++)
            if (!is_amount(loads[i]) || loads[i] <= 0.0f)
                return refuse(reason, REJECT_VALUE);
    }
    if (d->off_weights != 0 && !weights_are_valid(array_at(d, d->off_weights), n))
        return refuse(reason, REJECT_VALUE);
    if (d->off_curves != 0) {
        const float *curves = array_at(d, d->off_curves);
        for (uint32_t i = 0; i < n; i++)
            if (!curve_is_valid(curves + (uint64_t)i * CURVE_POINTS))
                return refuse(reason, REJECT_VALUE);
    }
    if (d->off_aging != 0) {
        const struct aging *aging = array_at(d, d->off_aging);
        for (uint32_t i = 0; i < n; i++)
            if (!is_amount(aging[i].from) || !is_amount(aging[i].per_second))
                return refuse(reason, REJECT_VALUE);
    }
    if (d->off_classic != 0) {
        const struct classic_server *classic = array_at(d, d->off_classic);
        const uint64_t *ids = array_at(d, d->off_ids);
        for (uint32_t i = 0; i < n; i++)
            if (!classic_is_valid(classic + i, ids[i]))
                return refuse(reason, REJECT_VALUE);
    }
    if (d->off_alias_other != 0 && !slots_are_below(array_at(d, d->off_alias_other), n, n))
        return refuse(reason, REJECT_TABLE);
    if (d->off_table != 0 && !slots_are_below(array_at(d, d->off_table), d->table_slots, n))
        return refuse(reason, REJECT_TABLE);
    return 0;
}
