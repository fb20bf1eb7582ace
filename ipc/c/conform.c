/*
 * conform.c: the driver of the conformance suite. It is the library zhx.h with a command line: commands on standard input, one a
 * line, answers and events on standard output. It uses the public interface alone.
 */
#define _POSIX_C_SOURCE 200809L
#include "zhx.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SLOW = 32, SLOW_MS = 300, OPEN_MS = 5000 };

static zhx *h;
static uint64_t wanted;           /* the id whose answer is printed; 0: none */
static int as_ok;                 /* its ACK is printed as "ok" */
static int opening, up_once, answered;
static struct { uint64_t session, id; int64_t due; } slow[SLOW];
static int n_slow;

static const char *const levels[] = {"none", "accepted", "written", "handled"};
static const char *const states[] = {"absent", "running", "ready", "late", "restarting", "failed", "stopped"};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int begins(const struct zhx_event *e, const char *s) { return e->len >= strlen(s) && memcmp(e->body, s, strlen(s)) == 0; }

static void print_fds(struct zhx_event *e)
{
    int i;
    for (i = 0; i < e->nfds; i++) {
        char text[4096];
        ssize_t n = pread(e->fd[i], text, sizeof text, 0);
        printf("fd %s %.*s\n", e->from, n > 0 ? (int)n : 0, text);
    }
}

static void acknowledge_slow(void)
{
    while (n_slow > 0 && slow[0].due <= now_ms()) {
        zhx_ack(h, slow[0].session, slow[0].id);
        memmove(slow, slow + 1, sizeof slow[0] * (size_t)--n_slow);
    }
}

static int on_event(zhx *z, struct zhx_event *e, void *arg)
{
    int len = (int)e->len, r = ZHX_DONE;
    char text[4096];
    (void)arg;
    switch (e->type) {
    case ZHX_EV_MESSAGE:
        if (e->flags & ZHX_FROM_V1) len = (int)strnlen((const char *)e->body, e->len);
        if (e->nfds > 0) print_fds(e);
        else
            printf("message %s %s%s%.*s\n", e->from, e->flags & ZHX_REPEAT ? "repeat " : "", e->flags & ZHX_FROM_V1 ? "v1 " : "", len,
                   (const char *)e->body);
        if (e->code == ZHX_HANDLED && begins(e, "slow") && n_slow < SLOW) {
            slow[n_slow].session = e->session, slow[n_slow].id = e->id, slow[n_slow++].due = now_ms() + SLOW_MS;
            r = ZHX_LATER;
        }
        break;
    case ZHX_EV_REQUEST:
        printf("request %s %.*s\n", e->from, len, (const char *)e->body);
        if (len == 4 && begins(e, "fail")) {
            zhx_reply(z, e->session, e->id, 1, "no", 2);
        } else if (!(len == 4 && begins(e, "hang"))) {
            int n = snprintf(text, sizeof text, "re: %.*s", len, (const char *)e->body);
            zhx_reply(z, e->session, e->id, 0, text, n < (int)sizeof text ? (size_t)n : sizeof text - 1);
        }
        break;
    case ZHX_EV_PUBLICATION: printf("publication %s %s%.*s\n", e->to, e->flags & ZHX_RETAIN ? "kept " : "", len, (const char *)e->body); break;
    case ZHX_EV_GAP: printf("gap %s %" PRIu64 "\n", e->to, e->id); break;
    case ZHX_EV_STATE: printf("state %s %s\n", e->to, e->code >= 0 && e->code <= 6 ? states[e->code] : "unknown"); break;
    case ZHX_EV_UP:
        if (up_once++) printf("up\n");
        else if (opening) printf("ok\n"), opening = 0, answered = 1;
        break;
    case ZHX_EV_DOWN: printf("down\n"); break;
    case ZHX_EV_TAKEN: printf("taken\n"); break;
    case ZHX_EV_ACK:
        if (e->id != wanted) break;
        printf(as_ok ? "ok\n" : "ack %s\n", levels[e->code & 3]);
        answered = 1;
        break;
    case ZHX_EV_REPLY:
        if (e->id != wanted) break;
        printf("%s %.*s\n", e->code == ZHX_REFUSED ? "failed" : "reply", len, (const char *)e->body);
        answered = 1;
        break;
    case ZHX_EV_ERROR:
        if (opening) opening = 0;
        else if (e->id != wanted || wanted == 0) break;
        printf(e->code == ZHX_TIMEOUT ? "timeout\n" : "error %s\n", zhx_word(e->code));
        answered = 1;
        break;
    }
    return r;
}

/* turn waits for the library, for standard input if it is asked to, and for the next slow acknowledgement. */
static int turn(int with_stdin)
{
    struct pollfd p[2];
    int wait = h ? zhx_timeout(h) : -1;
    p[0].fd = h ? zhx_fd(h) : -1, p[0].events = h ? zhx_events(h) : 0;
    p[1].fd = with_stdin ? 0 : -1, p[1].events = POLLIN;
    p[0].revents = p[1].revents = 0;
    if (n_slow > 0) {
        int left = slow[0].due > now_ms() ? (int)(slow[0].due - now_ms()) : 0;
        if (wait < 0 || left < wait) wait = left;
    }
    poll(p, 2, wait);
    if (h) {
        zhx_process(h, 0);
        acknowledge_slow();
    }
    return p[1].revents;
}

static void answer(int r, uint64_t id, int ok)
{
    if (r != ZHX_OK) {
        printf("error %s\n", zhx_word(r));
        return;
    }
    wanted = id, as_ok = ok, answered = 0;
    while (!answered) turn(0);
    wanted = 0;
}

static char *word(char **rest)
{
    char *w = *rest, *space = strchr(w, ' ');
    *rest = space ? space + 1 : w + strlen(w);
    if (space) *space = 0;
    return w;
}

static int level_of(const char *s)
{
    int i;
    for (i = 0; i < 4; i++)
        if (strcmp(s, levels[i]) == 0) return i;
    return -1;
}

static void open_zhx(void)
{
    struct zhx_options o;
    int64_t end;
    int error;
    memset(&o, 0, sizeof o);
    o.handler = on_event;
    h = zhx_open(&o, &error);
    if (!h) {
        printf("error %s\n", zhx_word(error));
        return;
    }
    opening = 1, answered = 0;
    for (end = now_ms() + OPEN_MS; !answered && now_ms() < end;) turn(0);
    if (!answered) printf("error closed\n");
    opening = 0;
}

static void send_fd(const char *to, const char *text)
{
    struct zhx_message m;
    char path[] = "/tmp/zhx-conform-XXXXXX";
    uint64_t id;
    int fd = mkstemp(path), r = ZHX_BAD;
    memset(&m, 0, sizeof m);
    m.to = to, m.body = "fd", m.len = 2, m.level = ZHX_WRITTEN, m.fd = &fd, m.nfds = 1;
    if (fd >= 0 && unlink(path) == 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text)) r = zhx_send_message(h, &m, &id);
    if (fd >= 0) close(fd);
    answer(r, id, 0);
}

static void run(char *line)
{
    static const char *const policies[] = {"oldest", "newest", "latest", "disconnect"};
    char *rest = line, *cmd = word(&rest), *a, *b;
    uint64_t id = 0;
    if (strcmp(cmd, "open") == 0) {
        open_zhx();
    } else if (!h) {
        printf("error closed\n");
    } else if (strcmp(cmd, "send") == 0) {
        int level, r;
        a = word(&rest), b = word(&rest);
        level = level_of(b);
        r = zhx_send(h, a, level, rest, strlen(rest), &id);
        if (r == ZHX_OK && level == ZHX_NONE) printf("ack none\n");
        else answer(r, id, 0);
    } else if (strcmp(cmd, "sendfd") == 0) {
        a = word(&rest);
        send_fd(a, rest);
    } else if (strcmp(cmd, "big") == 0) {
        size_t n;
        char *body;
        int r;
        a = word(&rest);
        n = (size_t)strtoul(rest, NULL, 10);
        body = (char *)malloc(n + 1);
        if (!body) exit(1);
        memset(body, 'x', n);
        r = zhx_send(h, a, ZHX_ACCEPTED, body, n, &id);
        free(body);
        answer(r, id, 0);
    } else if (strcmp(cmd, "request") == 0) {
        int r;
        a = word(&rest), b = word(&rest);
        r = zhx_request(h, a, rest, strlen(rest), atoi(b), NULL, NULL, &id);
        answer(r, id, 0);
    } else if (strcmp(cmd, "publish") == 0 || strcmp(cmd, "retain") == 0) {
        int r;
        a = word(&rest);
        r = zhx_publish(h, a, ZHX_ACCEPTED, *cmd == 'r' ? ZHX_RETAIN : 0, rest, strlen(rest), &id);
        answer(r, id, 0);
    } else if (strcmp(cmd, "subscribe") == 0) {
        int policy, r;
        a = word(&rest);
        for (policy = 0; policy < 4 && strcmp(rest, policies[policy]) != 0; policy++) {}
        r = zhx_subscribe(h, a, policy, 0, &id);
        if (r == ZHX_OK && id == 0) printf("ok\n"); /* made when the connection is back */
        else answer(r, id, 1);
    } else if (strcmp(cmd, "sleep") == 0) {
        struct timespec t;
        t.tv_sec = atoi(rest) / 1000, t.tv_nsec = atoi(rest) % 1000 * 1000000L;
        while (nanosleep(&t, &t) != 0 && errno == EINTR) {}
    } else {
        int r = ZHX_BAD;
        if (strcmp(cmd, "unsubscribe") == 0) r = zhx_unsubscribe(h, rest);
        else if (strcmp(cmd, "watch") == 0) r = zhx_watch(h, rest);
        else if (strcmp(cmd, "feed") == 0) r = strcmp(rest, "arm") == 0 ? zhx_arm(h, NULL) : zhx_feed(h, NULL);
        else if (strcmp(cmd, "checkpoint") == 0) r = zhx_checkpoint(h, NULL, rest);
        printf(r == ZHX_OK ? "ok\n" : "error %s\n", zhx_word(r));
    }
}

int main(void)
{
    static char in[64 * 1024];
    size_t len = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        char *end;
        ssize_t n;
        while ((end = (char *)memchr(in, '\n', len)) != NULL) {
            *end = 0;
            run(in);
            len -= (size_t)(end + 1 - in);
            memmove(in, end + 1, len);
        }
        if (!turn(1)) continue;
        n = read(0, in + len, sizeof in - len);
        if (n <= 0) break;
        len += (size_t)n;
    }
    zhx_close(h);
    return 0;
}
