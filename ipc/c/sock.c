/*
 * sock.c: the prototype's functions for clients, see sock.h. One thread for each client_socket carries PACKETs between the program's
 * socket pair and a zhx handle, which only that thread touches.
 */
#define _POSIX_C_SOURCE 200809L
#include "sock.h"
#include "zhx.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <time.h>

enum {
    CONNECT_WAIT_MS = 1000, /* client_socket, for zhxd */
    LAST_WAIT_MS = 1000,    /* after the program has closed its descriptor, or at exit, for what it sent last */
    ROOM_WAIT_MS = 1000,    /* for room among the unacknowledged, while connected; then a message is given up */
    HOLD_MS = 10000,        /* how long a message may wait for its receiver */
    STACK = 128 * 1024
};

enum { NOTHING, TO_WRITE, TO_BE_READ }; /* the pair has no room for pending; it has it, and the program has not taken it */

struct relay {
    zhx *h;
    int used, fd; /* fd: this side of the pair */
    int taken;
    int up;
    int waits; /* NOTHING, or for the program to read; meanwhile no further message is taken from zhxd */
    PACKET pending;
    uint64_t session, id; /* of its message; id 0: it is not to be acknowledged */
};

static struct relay relays[SOCK_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* relays[].used and up, running, leaving, server_pid, server_seen */
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static int running, leaving;
static int server_pid;
static int64_t server_seen; /* ms, when a relay connected, or lost its connection; 0: never */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void note_server(struct relay *r)
{
    int up = zhx_up(r->h);
    if (up == r->up) return;
    pthread_mutex_lock(&lock);
    r->up = up;
    server_seen = now_ms();
    if (up) server_pid = zhx_peer(r->h);
    if (server_pid == 0) server_pid = 1; /* over TCP, or from another pid namespace: it is there */
    pthread_mutex_unlock(&lock);
}

static size_t used_bytes(const char *s, size_t n)
{
    while (n > 0 && s[n - 1] == 0) n--;
    return n;
}

static int set_name(char *dst, size_t size, const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > ZHX_NAME_MAX || n >= size) return -1;
    memcpy(dst, name, n + 1);
    return 0;
}

static void packet(PACKET *p, int cmd, int wdt)
{
    memset(p, 0, sizeof *p);
    strcpy(p->head, "head");
    p->cmd = cmd, p->wdt = wdt;
}

/* ---- the thread */

/* hand gives the pending packet to the program. As the pair's buffer is as small as can be, poll tells POLLOUT again only when the
 * program has read it, and only then is it acknowledged: what a killed program has not read comes to its next run. */
static void hand(struct relay *r)
{
    ssize_t n = send(r->fd, &r->pending, sizeof r->pending, MSG_NOSIGNAL | MSG_DONTWAIT); /* whole or not at all */
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) r->waits = TO_WRITE;
    else r->waits = r->id || n < 0 ? TO_BE_READ : NOTHING; /* n < 0: the program has closed its side, and never reads it */
    zhx_pause(r->h, r->waits != NOTHING);
}

/* look goes on where the program has read. */
static void look(struct relay *r)
{
    struct pollfd p;
    p.fd = r->fd, p.events = POLLOUT, p.revents = 0;
    if (r->waits == NOTHING || poll(&p, 1, 0) <= 0 || p.revents != POLLOUT) return; /* closed without a read has POLLHUP too */
    if (r->waits == TO_WRITE) {
        hand(r);
        return;
    }
    r->waits = NOTHING;
    zhx_pause(r->h, 0);
    zhx_ack(r->h, r->session, r->id);
}

static int on_event(zhx *h, struct zhx_event *e, void *arg)
{
    struct relay *r = (struct relay *)arg;
    switch (e->type) {
    case ZHX_EV_MESSAGE:
        if (e->len > sizeof r->pending.msg) {
            fprintf(stderr, "sock: a message of %lu bytes from %s is dropped: too big\n", (unsigned long)e->len, e->from);
            break;
        }
        packet(&r->pending, CMD_TRANSFER, 0);
        set_name(r->pending.target_name, sizeof r->pending.target_name, e->to);
        set_name(r->pending.source_name, sizeof r->pending.source_name, e->from);
        memcpy(r->pending.msg, e->body, e->len);
        r->session = e->session, r->id = e->code == ZHX_HANDLED ? e->id : 0;
        hand(r);
        return ZHX_LATER;
    case ZHX_EV_REQUEST: zhx_reply(h, e->session, e->id, 1, "this program answers no requests", 32); break;
    case ZHX_EV_ERROR: fprintf(stderr, "sock: %s: %s\n", *e->to ? e->to : "zhx", zhx_word(e->code)); break;
    case ZHX_EV_TAKEN:
        fprintf(stderr, "sock: %s: another process has this name now\n", e->to);
        r->taken = 1;
        shutdown(r->fd, SHUT_WR); /* the program reads 0; what it writes is thrown away */
        break;
    }
    return ZHX_DONE;
}

static void transfer(struct relay *r, const PACKET *p, const char *target, const char *source)
{
    struct zhx_message m;
    int64_t end = 0;
    int result;
    memset(&m, 0, sizeof m);
    m.to = target, m.from = source, m.body = p->msg, m.len = used_bytes(p->msg, sizeof p->msg);
    m.level = ZHX_HANDLED, m.time_ms = HOLD_MS;
    while ((result = zhx_send_message(r->h, &m, NULL)) == ZHX_FULL) {
        int64_t now = now_ms();
        if (end == 0 || !zhx_up(r->h)) end = now + ROOM_WAIT_MS;
        if (now >= end || zhx_process(r->h, 50) < 0) break;
        note_server(r);
    }
    if (result != ZHX_OK) fprintf(stderr, "sock: a message to %s is dropped: %s\n", target, zhx_word(result));
}

/* from_program does what a packet says. */
static void from_program(struct relay *r, const PACKET *p)
{
    char target[sizeof p->target_name + 1] = "", source[sizeof p->source_name + 1] = "";
    int result = ZHX_OK;
    if (r->taken) return;
    memcpy(target, p->target_name, sizeof p->target_name);
    memcpy(source, p->source_name, sizeof p->source_name);
    if (p->cmd == CMD_TRANSFER) transfer(r, p, target, source);
    else if (p->cmd == CMD_RECV) result = zhx_register(r->h, source, NULL);
    else if (p->cmd == CMD_WDT && p->wdt == WDT_REGISTER) result = zhx_arm(r->h, source);
    else if (p->cmd == CMD_WDT) result = zhx_feed(r->h, source);
    if (result != ZHX_OK && result != ZHX_CLOSED) fprintf(stderr, "sock: %s: %s\n", source, zhx_word(result)); /* closed: a feed while zhxd is away */
}

static void *run(void *arg)
{
    struct relay *r = (struct relay *)arg;
    union { PACKET p; char bytes[sizeof(PACKET)]; } in;
    size_t have = 0;
    for (;;) {
        struct pollfd p[2];
        ssize_t n;
        p[0].fd = zhx_fd(r->h), p[0].events = zhx_events(r->h), p[0].revents = 0;
        p[1].fd = r->fd, p[1].events = (short)(POLLIN | (r->waits ? POLLOUT : 0)), p[1].revents = 0;
        poll(p, 2, zhx_timeout(r->h));
        zhx_process(r->h, 0);
        note_server(r);
        look(r);
        n = recv(r->fd, in.bytes + have, sizeof in - have, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) break;
        if (n > 0 && (have += (size_t)n) == sizeof in) {
            from_program(r, &in.p);
            have = 0;
        }
    }
    look(r); /* the program may have read its last message, and ended, since */
    zhx_flush(r->h, LAST_WAIT_MS);
    zhx_close(r->h);
    pthread_mutex_lock(&lock);
    close(r->fd);
    if (r->up) server_seen = now_ms();
    r->used = r->up = 0;
    running--;
    pthread_cond_broadcast(&ended);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* leave runs at exit: each thread sees the end of what the program wrote, sends it, and ends. */
static void leave(void)
{
    struct timespec end;
    int i;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 1 + LAST_WAIT_MS / 1000;
    pthread_mutex_lock(&lock);
    leaving = 1;
    for (i = 0; i < SOCK_MAX; i++)
        if (relays[i].used) shutdown(relays[i].fd, SHUT_RD);
    while (running > 0 && pthread_cond_timedwait(&ended, &lock, &end) == 0) {}
    pthread_mutex_unlock(&lock);
}
static void at_exit(void) { atexit(leave); }

/* start gives the connected handle a slot, a socket pair and a thread. It returns the program's side; -1, errno. */
static int start(struct relay *r, int pair[2])
{
    sigset_t all, before;
    pthread_attr_t attr;
    pthread_t thread;
    int error;
    size_t stack = STACK;
#ifdef PTHREAD_STACK_MIN
    if (stack < (size_t)PTHREAD_STACK_MIN) stack = (size_t)PTHREAD_STACK_MIN;
#endif
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, stack);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the program's signals are for the program's threads */
    error = pthread_create(&thread, &attr, run, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (error == 0) return pair[0];
    errno = error;
    return -1;
}

int client_socket(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct zhx_options o;
    struct relay *r = NULL;
    int64_t end = now_ms() + CONNECT_WAIT_MS;
    int i, error, sock = -1, pair[2], least = 1;
    pthread_once(&once, at_exit);
    pthread_mutex_lock(&lock);
    for (i = 0; i < SOCK_MAX && !r && !leaving; i++)
        if (!relays[i].used) r = &relays[i];
    if (r) memset(r, 0, sizeof *r), r->used = 1, r->fd = -1;
    pthread_mutex_unlock(&lock);
    if (!r) {
        errno = EMFILE;
        return -1;
    }
    memset(&o, 0, sizeof o);
    o.name = "", o.handler = on_event, o.arg = r;
    o.keep = ZHX_KEPT * 768; /* as many as may be kept, of this size */
    r->h = zhx_open(&o, &error);
    errno = error == ZHX_NOMEM ? ENOMEM : EINVAL;
    if (r->h) {
        while (!zhx_up(r->h) && now_ms() < end) zhx_process(r->h, (int)(end - now_ms()));
        note_server(r);
        errno = ECONNREFUSED;
        if (zhx_up(r->h) && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0) {
            fcntl(pair[0], F_SETFD, FD_CLOEXEC);
            fcntl(pair[1], F_SETFD, FD_CLOEXEC);
            setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &least, sizeof least); /* see hand */
            pthread_mutex_lock(&lock);
            r->fd = pair[1];
            running++;
            pthread_mutex_unlock(&lock);
            sock = start(r, pair);
            if (sock >= 0) return sock;
            close(pair[0]);
            close(pair[1]);
            pthread_mutex_lock(&lock);
            running--;
            pthread_mutex_unlock(&lock);
        }
        error = errno;
        zhx_close(r->h);
        errno = error;
    }
    pthread_mutex_lock(&lock);
    r->used = r->up = 0;
    pthread_mutex_unlock(&lock);
    return -1;
}

/* ---- the program's threads */

/* give writes a packet whole. A Unix socket takes one at a time, so that those of several threads do not mix. */
static int give(int sock, const PACKET *p)
{
    const char *at = (const char *)p;
    size_t left = sizeof *p;
    while (left > 0) {
        ssize_t n = send(sock, at, left, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        at += n, left -= (size_t)n;
    }
    return 1;
}

int transfer_msg(int sock, const char *target_name, const char *source_name, const char *content)
{
    PACKET p;
    packet(&p, CMD_TRANSFER, 0);
    if (set_name(p.target_name, sizeof p.target_name, target_name) != 0 || set_name(p.source_name, sizeof p.source_name, source_name) != 0) {
        errno = EINVAL;
        return -1;
    }
    if (strlen(content) >= sizeof p.msg) {
        errno = EMSGSIZE;
        return -1;
    }
    strcpy(p.msg, content);
    return give(sock, &p);
}

static int watchdog(int sock, const char *source_name, int what)
{
    PACKET p;
    packet(&p, CMD_WDT, what);
    if (set_name(p.source_name, sizeof p.source_name, source_name) != 0) {
        errno = EINVAL;
        return -1;
    }
    return give(sock, &p);
}
int register_wdt(int sock, const char *source_name) { return watchdog(sock, source_name, WDT_REGISTER); }
int send_wdt(int sock, const char *source_name) { return watchdog(sock, source_name, WDT_SIGNAL); }

int get_other_process_pid(const char *process_name)
{
    DIR *proc;
    struct dirent *d;
    int least = 0;
    if (strcmp(process_name, "zhx_server") == 0) {
        int i;
        pthread_mutex_lock(&lock);
        if (server_seen != 0 && now_ms() - server_seen < SERVER_GONE_S * 1000) least = server_pid;
        for (i = 0; i < SOCK_MAX; i++)
            if (relays[i].up) least = server_pid;
        pthread_mutex_unlock(&lock);
        if (least > 0) return least;
    }
    proc = opendir("/proc");
    while (proc && (d = readdir(proc)) != NULL) {
        char path[64], comm[64];
        int pid = atoi(d->d_name), fd;
        ssize_t n;
        if (pid <= 0 || (least > 0 && pid > least)) continue;
        snprintf(path, sizeof path, "/proc/%d/comm", pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        n = fd < 0 ? -1 : read(fd, comm, sizeof comm - 1);
        if (fd >= 0) close(fd);
        if (n <= 0) continue;
        comm[comm[n - 1] == '\n' ? n - 1 : n] = 0;
        if (strstr(comm, process_name) != NULL) least = pid;
    }
    if (proc) closedir(proc);
    return least;
}
