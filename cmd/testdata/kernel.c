/* A kernel that refuses, for tests: runs a program, and answers some of its system calls as FILE says at that moment.
 *
 *   kernel FILE PROGRAM ARGUMENT...
 *
 * FILE has words: fork (ENOMEM for a new process, not for a thread), accept (ENFILE), inotify (EMFILE), clock=SECONDS (the wall
 * clock is that far off). A filter of seccomp(2) hands these calls to us; the program's vDSO is hidden, so that it asks the kernel
 * what time it is. What the program starts is left alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t child;

static void die(const char *what)
{
    perror(what);
    if (child > 0) kill(child, SIGKILL);
    exit(125);
}

static void pass_on(int sig) { kill(child, sig); }

/* listener makes the filter and returns what its calls come to. */
static int listener(void)
{
#define ASK(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF)
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ASK(SYS_clone),
        ASK(SYS_clone3),
        ASK(SYS_accept4),
        ASK(SYS_inotify_init1),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)), /* little-endian: the lower half */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLOCK_REALTIME, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof code / sizeof code[0], code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
    if (fd < 0) die("seccomp");
    return fd;
}

/* hand sends fd, or takes one (fd < 0). */
static int hand(int sock, int fd)
{
    char byte = 0, room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (fd < 0) {
        if (recvmsg(sock, &m, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&m)) die("no filter here");
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
        return fd;
    }
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    if (sendmsg(sock, &m, 0) != 1) die("hand over the filter");
    return fd;
}

/* hide_vdso takes AT_SYSINFO_EHDR out of what the kernel has put on the stack of the program, which has not begun. */
static void hide_vdso(void)
{
    char path[64], stat[2048];
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    FILE *f = fopen(path, "r");
    if (!f || !fgets(stat, sizeof stat, f)) die(path);
    fclose(f);
    char *p = strrchr(stat, ')') + 1;
    for (int field = 3; field < 28 && p; field++) p = strchr(p + 1, ' '); /* to startstack */
    uint64_t at = p ? strtoull(p, NULL, 10) : 0;
    snprintf(path, sizeof path, "/proc/%d/mem", child);
    int mem = open(path, O_RDWR | O_CLOEXEC);
    long word = 1;
    if (mem < 0 || pread(mem, &word, sizeof word, at) != sizeof word) die(path);
    at += (word + 2) * sizeof word;                                                     /* argc, arguments, NULL */
    do if (pread(mem, &word, sizeof word, at) != sizeof word) die(path); while (at += sizeof word, word); /* environment */
    for (;; at += 2 * sizeof word) {
        if (pread(mem, &word, sizeof word, at) != sizeof word) die(path);
        if (word == 0) break;
        long none = 1; /* AT_IGNORE */
        if (word == 33 && pwrite(mem, &none, sizeof none, at) != sizeof none) die(path);
    }
    close(mem);
}

/* answer decides one call. */
static void answer(const char *file, struct seccomp_notif *n, struct seccomp_notif_resp *r)
{
    char words[256] = "", path[64], *clock;
    int f = open(file, O_RDONLY | O_CLOEXEC);
    if (f >= 0 && read(f, words, sizeof words - 1) < 0) words[0] = 0;
    close(f);
    r->flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    snprintf(path, sizeof path, "/proc/%d/task/%u", child, n->pid);
    if (access(path, F_OK)) return;
    uint64_t flags = n->data.args[0];
    int no = 0;
    switch (n->data.nr) {
    case SYS_clone3: {
        struct iovec to = {&flags, sizeof flags}, from = {(void *)n->data.args[0], sizeof flags};
        if (process_vm_readv(n->pid, &to, 1, &from, 1, 0) < 0) return;
    } /* fall through */
    case SYS_clone:
        if (strstr(words, "fork") && !(flags & CLONE_THREAD)) no = ENOMEM;
        break;
    case SYS_accept4:
        if (strstr(words, "accept")) no = ENFILE;
        break;
    case SYS_inotify_init1:
        if (strstr(words, "inotify")) no = EMFILE;
        break;
    case SYS_clock_gettime:
        if ((clock = strstr(words, "clock="))) {
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            now.tv_sec += atoll(clock + 6);
            struct iovec from = {&now, sizeof now}, to = {(void *)n->data.args[1], sizeof now};
            if (process_vm_writev(n->pid, &from, 1, &to, 1, 0) == sizeof now) r->flags = 0;
        }
        return;
    }
    if (no) r->flags = 0, r->error = -no;
}

int main(int argc, char **argv)
{
    int pair[2], status;
    if (argc < 3 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) die("kernel FILE PROGRAM");
    if ((child = fork()) < 0) die("fork");
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0)) die("ptrace");
        hand(pair[0], listener());
        execv(argv[2], argv + 2);
        die(argv[2]);
    }
    close(pair[0]);
    signal(SIGTERM, pass_on);
    int fd = hand(pair[1], -1);
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) die("the program did not start");
    hide_vdso();
    if (ptrace(PTRACE_DETACH, child, 0, 0)) die("detach");
    for (struct pollfd p = {fd, POLLIN, 0};;) {
        int ready = poll(&p, 1, 100);
        if (waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
        if (ready <= 0 || !(p.revents & POLLIN)) continue;
        struct seccomp_notif n = {0};
        if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &n)) continue; /* it is gone */
        struct seccomp_notif_resp r = {.id = n.id};
        answer(argv[1], &n, &r);
        ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &r);
    }
}
