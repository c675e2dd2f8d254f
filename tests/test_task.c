// The tasks: what the verifiers accept and refuse (tables of traps, and oracles written another way
// that judge mutations and random bytes), how prompts are drawn, and the warm-up corpora.
//
// Statistics are compared with their expectation within five standard deviations of the binomial
// distribution: a right generator fails that for one seed in 1.7 million, and the seeds are fixed.
#include <ctype.h>

#include "refusal.h"
#include "text/alphabet.h"
#include "text/task.h"

static void check_share(int count, int n, double p, const char* what) {
    CHECK_NEAR(count, n * p, 5 * sqrt(n * p * (1 - p)), what);
}

// ---------------------------------------------------------------------------------------------
// Tables of traps.

typedef struct trap {
    const char *prompt, *response;
    int right;
} trap;

static const trap CHAIN_TRAPS[] = {
    {"7+8+1-8-5:", "03\n", 1},
    {"7+8+1-8-5:", "7+8=15+1=16-8=08-5=03\n", 1},
    {"7+8+1-8-5:", "7+8=99+1=16-8=-8-5=03\n", 1},  // only the end counts
    {"7+8+1-8-5:", "=03\n", 1},
    {"7+8+1-8-5:", "-03\n", 1},
    {"7+8+1-8-5:", "\xff=03\n", 1},
    {"7+8+1-8-5:", "", 0},
    {"7+8+1-8-5:", "\n", 0},
    {"7+8+1-8-5:", "3\n", 0},
    {"7+8+1-8-5:", "=3\n", 0},
    {"7+8+1-8-5:", "03", 0},
    {"7+8+1-8-5:", "7+8=15+1=16-8=08-5=03", 0},
    {"7+8+1-8-5:", "003\n", 0},
    {"7+8+1-8-5:", "103\n", 0},
    {"7+8+1-8-5:", "7+8=15+1=16-8=08-5=903\n", 0},
    {"7+8+1-8-5:", "03\n\n", 0},
    {"7+8+1-8-5:", "\n03\n", 0},
    {"7+8+1-8-5:", "03\n03\n", 0},
    {"7+8+1-8-5:", "03\nx", 0},
    {"7+8+1-8-5:", "03 \n", 0},
    {"7+8+1-8-5:", "03\r\n", 0},
    {"7+8+1-8-5:", "03.\n", 0},
    {"7+8+1-8-5:", "03=\n", 0},
    {"7+8+1-8-5:", "04\n", 0},
    {"7+8+1-8-5:", "02\n", 0},
    {"7+8+1-8-5:", "30\n", 0},
    {"7+8+1-8-5:", "13\n", 0},
    {"7+8+1-8-5:", " 3\n", 0},
    {"7+8+1-8-5:", "+3\n", 0},
    {"7+8+1-8-5:", "0 3\n", 0},
    {"7+8+1-8-5:", "3.0\n", 0},
    {"7+8+1-8-5:", "0x3\n", 0},
    {"7+8+1-8-5:", "\xb0\xb3\n", 0},
    {"7+8+1-8-5:", "three\n", 0},
    {"9+9+9:", "27\n", 1},
    {"9+9+9:", "72\n", 0},
    {"1-1:", "00\n", 1},
    {"1-1:", "0\n", 0},
    {"1-1:", "-00\n", 1},
    {"1-1:", "000\n", 0},
    {"9+9+9+9+9+9+9+9+9+9+9:", "99\n", 1},
};

static const trap ADD_TRAPS[] = {
    {"123+458=", "581\n", 1},
    {"123+458=", "3+8+0=11,2+5+1=08,1+4+0=05=581\n", 1},
    {"123+458=", "=581\n", 1},
    {"123+458=", "582=581\n", 1},
    {"123+458=", "anything=581\n", 1},
    {"123+458=", "", 0},
    {"123+458=", "\n", 0},
    {"123+458=", "=\n", 0},
    {"123+458=", "581", 0},
    {"123+458=", "=581", 0},
    {"123+458=", "0581\n", 0},
    {"123+458=", "=0581\n", 0},
    {"123+458=", "+581\n", 0},
    {"123+458=", "-581\n", 0},
    {"123+458=", " 581\n", 0},
    {"123+458=", "581 \n", 0},
    {"123+458=", "5 81\n", 0},
    {"123+458=", "5,81\n", 0},
    {"123+458=", "581,\n", 0},
    {"123+458=", "581.\n", 0},
    {"123+458=", "581.0\n", 0},
    {"123+458=", "581\r\n", 0},
    {"123+458=", "581\n\n", 0},
    {"123+458=", "581\n581\n", 0},
    {"123+458=", "7\n=581\n", 0},
    {"123+458=", "581=\n", 0},
    {"123+458=", "581=582\n", 0},
    {"123+458=", "582\n", 0},
    {"123+458=", "58\n", 0},
    {"123+458=", "5811\n", 0},
    {"123+458=", "1581\n", 0},
    {"123+458=", "0x245\n", 0},
    {"123+458=", "123+458\n", 0},
    {"123+458=", "18446744073709552197\n", 0},  // 581 modulo 2^64
    {"9+1=", "10\n", 1},
    {"1+1=", "2\n", 1},
    {"1+1=", "02\n", 0},
    {"1+23=", "24\n", 1},  // no option draws it, but it is a prompt of the task
    {"999999999999999999+999999999999999999=", "1999999999999999998\n", 1},
    {"999999999999999999+999999999999999999=", "1999999999999999999\n", 0},
};

#define P29 "536870912"  // 2^29
static const trap COUNTDOWN_TRAPS[] = {
    {"3,5,7:26=", "7*3+5\n", 1},
    {"3,5,7:26=", "5+3*7\n", 1},
    {"3,5,7:26=", "(7*3)+5\n", 1},
    {"3,5,7:26=", "((7)*(3))+5\n", 1},
    {"3,5,7:26=", "(((((5+7*3)))))\n", 1},
    {"3,5,7:26=", "", 0},
    {"3,5,7:26=", "\n", 0},
    {"3,5,7:26=", "26\n", 0},
    {"3,5,7:26=", "7*3+5", 0},
    {"3,5,7:26=", "7*3+5\n\n", 0},
    {"3,5,7:26=", "\n7*3+5\n", 0},
    {"3,5,7:26=", "7*3\n+5\n", 0},
    {"3,5,7:26=", "7*3+5\nx", 0},
    {"3,5,7:26=", "7*3+5\r\n", 0},
    {"3,5,7:26=", "7*3+5=26\n", 0},
    {"3,5,7:26=", "7*3+5=\n", 0},
    {"3,5,7:26=", "26=7*3+5\n", 0},
    {"3,5,7:26=", "=7*3+5\n", 0},
    {"3,5,7:26=", "7*3+5 = 26\n", 0},
    {"3,5,7:26=", " 7*3+5\n", 0},
    {"3,5,7:26=", "7*3+5 \n", 0},
    {"3,5,7:26=", "7 * 3 + 5\n", 0},
    {"3,5,7:26=", "7*3+5.\n", 0},
    {"3,5,7:26=", "7.0*3+5\n", 0},
    {"3,5,7:26=", "7*3+05\n", 0},
    {"3,5,7:26=", "7*3+5+0\n", 0},
    {"3,5,7:26=", "7*3++5\n", 0},
    {"3,5,7:26=", "7*3+(+5)\n", 0},
    {"3,5,7:26=", "+7*3+5\n", 0},
    {"3,5,7:26=", "7*3-(-5)\n", 0},
    {"3,5,7:26=", "7*3--5\n", 0},
    {"3,5,7:26=", "-(-7)*3+5\n", 0},
    {"3,5,7:26=", "7*3+5*\n", 0},
    {"3,5,7:26=", "*7*3+5\n", 0},
    {"3,5,7:26=", "(7*3+5\n", 0},
    {"3,5,7:26=", "7*3+5)\n", 0},
    {"3,5,7:26=", ")7*3+5(\n", 0},
    {"3,5,7:26=", "()7*3+5\n", 0},
    {"3,5,7:26=", "7*3+5()\n", 0},
    {"3,5,7:26=", "7(3)+5\n", 0},
    {"3,5,7:26=", "(7)(3)+5\n", 0},
    {"3,5,7:26=", "7*3+5;\n", 0},
    {"3,5,7:26=", "7*3,5\n", 0},
    {"3,5,7:26=", "7x3+5\n", 0},
    {"3,5,7:26=", "7*3+5\v\n", 0},
    {"3,5,7:26=", "3*5+7\n", 0},      // 22
    {"3,5,7:26=", "7*5-3*3\n", 0},    // 26, but 3 twice
    {"3,5,7:26=", "7*3+5*1\n", 0},    // 1 is not given
    {"3,5,7:26=", "21+5\n", 0},       // 21 is not given
    {"3,5,7:26=", "7*3+5-5+5\n", 0},  // 5 three times
    {"3,5,7:8=", "3+5\n", 0},         // 7 is left out
    {"3,5,7:105=", "3*5*7\n", 1},
    {"3,5,7:15=", "3+5+7\n", 1},
    {"3,5,7:5=", "3-5+7\n", 1},  // a negative value on the way
    {"3,5,7:1=", "5-7+3\n", 1},  // from the left
    {"3,5,7:1=", "5-(7-3)\n", 1},
    {"3,5,7:9=", "7-(3-5)\n", 1},
    {"2,3:8=", "2**3\n", 0},
    {"2,7:3=", "7//2\n", 0},
    {"2,7:3=", "7/2\n", 0},  // 3.5 is not cut down to 3
    {"2,3:1=", "2/3\n", 0},
    {"2,3:1=", "3%2\n", 0},
    {"2,3:1=", "3^2\n", 0},
    {"2,3:6=", "3%2\n", 0},
    {"2,3:6=", "3x2\n", 0},
    {"2,3:6=", "3:2\n", 0},
    {"2,3:5=", "3,2\n", 0},
    {"2,3:5=", "3 2\n", 0},
    {"2,8:16=", "2*8\n", 1},
    {"2,8:4=", "8/2\n", 1},
    {"2,8:6=", "2-8\n", 0},  // -6
    {"2,3:23=", "23\n", 0},
    {"2,3:23=", "2(3)\n", 0},
    {"3,3:9=", "3*3\n", 1},
    {"3,3:9=", "3+3+3\n", 0},
    {"3,3:3=", "3\n", 0},
    {"3,3,8,8:24=", "8/(3-8/3)\n", 1},
    {"1,5,5,5:24=", "5*(5-1/5)\n", 1},
    {"1,3,4,6:24=", "6/(1-3/4)\n", 1},
    {"1,3,4,6:24=", "6/(3/4-1)\n", 0},  // -24
    {"2,3,3,4:1=", "3/3*(4/2)\n", 0},
    {"2,4,8:1=", "8/4/2\n", 1},  // from the left
    {"2,4,8:4=", "8/(4/2)\n", 1},
    {"2,4,8:4=", "8/4*2\n", 1},
    {"3,3,5:5=", "5/(3-3)\n", 0},
    {"3,3,5:5=", "5+0/(3-3)\n", 0},
    {"3,3,5,5:1=", "(3-3)/(5-5)\n", 0},
    {"3,3,5,5:5=", "5+5*(3-3)\n", 1},
    {"3,3,5,7:7=", "(3-3)/5+7\n", 1},
    {"11,12:132=", "11*12\n", 1},
    {"11,12:132=", "1*1*12\n", 0},
    {"11,1:12=", "1+11\n", 1},
    {"1,1,1,1,1,1:6=", "1+1+1+1+1+1\n", 1},
    {"1,1,1,1,1,1:6=", "1+1+1+1+1+1+1\n", 0},
    {"3,5:8=", "3+99999999999999999999999999999999\n", 0},
    {"3,5:8=", "3+18446744073709551621\n", 0},  // 5 modulo 2^64
    {"3,5:8=", "3+4294967301\n", 0},            // 5 modulo 2^32
    // Overflow is wrong, and products that come back to the target modulo 2^64 above all.
    {P29 "," P29 "," P29 ",5:5=", P29 "*" P29 "*" P29 "+5\n", 0},
    {P29 "," P29 "," P29 ",5:5=", "5+" P29 "*" P29 "*" P29 "\n", 0},
    {P29 "," P29 "," P29 ",5:5=", "5-" P29 "*" P29 "*" P29 "\n", 0},
    {P29 "," P29 "," P29 ",5,1:5=", "1/" P29 "/" P29 "/" P29 "+5\n", 0},
    {P29 "," P29 ",64,64,5:5=", P29 "*" P29 "*64+5-64\n", 0},
    {P29 "," P29 "," P29 "," P29 ":1=", P29 "*" P29 "/" P29 "/" P29 "\n", 1},
    {P29 "," P29 "," P29 "," P29 "," P29 ":" P29 "=", P29 "*" P29 "/" P29 "*" P29 "/" P29 "\n", 1},
    // 641 * 6700417 = 2^32 + 1 and 65535 * 65537 = 2^32 - 1: modulo 2^64 this is -2 / -1.
    {"1,641,6700417,1,65535,65537:2=", "1/641/6700417-1/65535/65537\n", 0},
    {"1,536870913,536870912,32,7,8:1=", "(1-536870913)*536870912*32/(7-8)\n", 0},  // -2^63 / -1
    {"1,536870913,536870912,32,7,8:1=", "(7-8)/((1-536870913)*536870912*32)\n", 0},
};

typedef struct text_case {
    const char* text;
    int right;
} text_case;

static const text_case CHAIN_PROMPTS[] = {
    {"7+8+1-8-5:", 1},
    {"1-1:", 1},
    {"9+9+9+9+9+9+9+9+9+9+9:", 1},
    {"", 0},
    {":", 0},
    {"7", 0},
    {"7:", 0},
    {"7+8", 0},
    {"7+8:x", 0},
    {"7+8::", 0},
    {"7+8:\n", 0},
    {" 7+8:", 0},
    {"0+8:", 0},
    {"7+0:", 0},
    {"7+:", 0},
    {"+7+8:", 0},
    {"7++8:", 0},
    {"7*8:", 0},
    {"77+8:", 0},
    {"7+88:", 0},
    {"1-2:", 0},
    {"1-2+9:", 0},
    {"9+9+9+9+9+9+9+9+9+9+9+1:", 0},
    {"9+9+9+9+9+9+9+9+9+9+9+1-5:", 0},
    {"7+8=", 0},
    {"7+\xb8:", 0},
};

static const text_case ADD_PROMPTS[] = {
    {"123+458=", 1},  {"1+1=", 1},       {"999999999999999999+1=", 1},
    {"", 0},          {"=", 0},          {"+=", 0},
    {"123+458", 0},   {"123+458=\n", 0}, {"123+458=5", 0},
    {"0123+458=", 0}, {"123+0458=", 0},  {"0+1=", 0},
    {"+123+458=", 0}, {"123++458=", 0},  {"123-458=", 0},
    {"123+=", 0},     {"+458=", 0},      {"123=", 0},
    {"1+2+3=", 0},    {" 1+2=", 0},      {"1000000000000000000+1=", 0},
};

static const text_case COUNTDOWN_PROMPTS[] = {
    {"3,5,7:26=", 1},
    {"1,1:1=", 1},
    {"1,2,3,4,5,6:999999999=", 1},
    {"", 0},
    {"=", 0},
    {":=", 0},
    {"3:3=", 0},
    {":26=", 0},
    {"3,5:=", 0},
    {"3,5:26", 0},
    {"3,5:26=\n", 0},
    {"3,5:26=3", 0},
    {"3,,5:26=", 0},
    {",3,5:26=", 0},
    {"3,5,:26=", 0},
    {"03,5:26=", 0},
    {"3,0:26=", 0},
    {"3,5:026=", 0},
    {"3,5:0=", 0},
    {"3,5:-2=", 0},
    {"3,-5:2=", 0},
    {"3,5;26=", 0},
    {"3,5,26=", 0},
    {"3, 5:26=", 0},
    {"1,2,3,4,5,6,7:28=", 0},
    {"1000000000,1:1=", 0},
    {"1,1:1000000000=", 0},
};

#define COUNT(table) ((int)(sizeof(table) / sizeof(table)[0]))

static void check_traps(const char* name, const trap* traps, int n, const text_case* prompts,
                        int prompt_count) {
    task t = task_open(name);
    for (int i = 0; i < n; i++) {
        const trap* c = &traps[i];
        int right = t.verify(&t, c->prompt, c->response);
        CHECK(t.is_prompt(&t, c->prompt), "%s: \"%s\" is not taken for a prompt", name, c->prompt);
        CHECK(right == c->right, "%s: \"%s\" \"%s\" gives %d", name, c->prompt, c->response, right);
    }
    for (int i = 0; i < prompt_count; i++) {
        const text_case* c = &prompts[i];
        CHECK(t.is_prompt(&t, c->text) == c->right, "%s: prompt \"%s\"", name, c->text);
        if (c->right) continue;
        for (int k = 0; k < n; k++)
            CHECK(!t.verify(&t, c->text, traps[k].response), "%s: \"%s\" \"%s\" is right", name,
                  c->text, traps[k].response);
    }
}

// A response is judged by its own bytes, not by those that happen to lie before it.
static void test_bytes_before_the_response(void) {
    task t = task_open("chain");
    char bytes[] = "03\n";
    CHECK(t.verify(&t, "1+2:", bytes), "\"03\" is wrong");
    CHECK(!t.verify(&t, "1+2:", bytes + 1), "\"3\" is right");
    char zeros[] = "103\n";
    CHECK(t.verify(&t, "1+2:", zeros + 1), "\"03\" after a 1 is wrong");
}

static void test_traps(void) {
    check_traps("chain", CHAIN_TRAPS, COUNT(CHAIN_TRAPS), CHAIN_PROMPTS, COUNT(CHAIN_PROMPTS));
    check_traps("add", ADD_TRAPS, COUNT(ADD_TRAPS), ADD_PROMPTS, COUNT(ADD_PROMPTS));
    check_traps("countdown", COUNTDOWN_TRAPS, COUNT(COUNTDOWN_TRAPS), COUNTDOWN_PROMPTS,
                COUNT(COUNTDOWN_PROMPTS));
}

// Parentheses 32 deep are fine, deeper ones are wrong, and a million do not overflow the stack.
static void test_deep_and_long(void) {
    task t = task_open("countdown"), chain = task_open("chain"), add = task_open("add");
    enum { LONG = 1000000 };
    char* text = xalloc(2 * LONG + 16, 1, "a long response");
    int depths[] = {1, 31, 32, 33, 64, 1000, LONG};
    for (int i = 0; i < COUNT(depths); i++) {
        int d = depths[i];
        memset(text, '(', (size_t)d);
        strcpy(text + d, "3+5");
        memset(text + d + 3, ')', (size_t)d);
        strcpy(text + 2 * d + 3, "\n");
        int right = t.verify(&t, "3,5:8=", text);
        CHECK(right == (d <= 32), "%d parentheses give %d", d, right);
        strcpy(text + d, "\n");
        CHECK(!t.verify(&t, "3,5:8=", text), "%d parentheses alone are right", d);
    }
    // Side by side they are not deep.
    CHECK(t.verify(&t, "1,1,1:3=",
                   "(((((((((((1)))))))))))+(((((((((((1)))))))))))+"
                   "(((((((((((1)))))))))))\n"),
          "side by side");
    const char* fillers[] = {"9", "3+", "=", "7*", "\xff", "\n"};
    for (int i = 0; i < COUNT(fillers); i++) {
        text[0] = 0;
        for (int n = 0; n < 100000; n += (int)strlen(fillers[i])) strcpy(text + n, fillers[i]);
        CHECK(!t.verify(&t, "3,5:8=", text), "a long response of %s", fillers[i]);
        CHECK(!add.verify(&add, "3+5=", text), "a long response of %s", fillers[i]);
        CHECK(!chain.verify(&chain, "3+5:", text), "a long response of %s", fillers[i]);
        CHECK(!t.is_prompt(&t, text) && !t.verify(&t, text, "8\n"), "a long prompt");
        CHECK(!add.is_prompt(&add, text) && !add.verify(&add, text, "8\n"), "a long prompt");
        CHECK(!chain.is_prompt(&chain, text) && !chain.verify(&chain, text, "08\n"), "a prompt");
    }
    free(text);
}

// ---------------------------------------------------------------------------------------------
// Oracles: the same rules, written in another way.

static int ends_itself(const char* s) {
    int ends = 0;
    for (const char* p = s; *p; p++) ends += *p == '\n';
    return ends == 1 && s[strlen(s) - 1] == '\n';
}

static int oracle_chain(const char* prompt, const char* response) {
    int value = prompt[0] - '0';
    for (int i = 1; prompt[i] != ':'; i += 2)
        value += (prompt[i] == '+' ? 1 : -1) * (prompt[i + 1] - '0');
    char end[8];
    size_t n = strlen(response), m = (size_t)snprintf(end, sizeof end, "%02d\n", value);
    if (!ends_itself(response) || n < m || strcmp(response + n - m, end)) return 0;
    return n == m || !isdigit((unsigned char)response[n - m - 1]);
}

// Adds as text, from the right.
static int oracle_add(const char* prompt, const char* response) {
    char a[TASK_TEXT_MAX], sum[TASK_TEXT_MAX];
    strcpy(a, prompt);
    char* b = strchr(a, '+');
    *b++ = 0;
    *strchr(b, '=') = 0;
    int i = (int)strlen(a), j = (int)strlen(b), k = TASK_TEXT_MAX, carry = 0;
    sum[--k] = 0;
    sum[--k] = '\n';
    while (i > 0 || j > 0 || carry) {
        carry += (i > 0 ? a[--i] - '0' : 0) + (j > 0 ? b[--j] - '0' : 0);
        sum[--k] = (char)('0' + carry % 10);
        carry /= 10;
    }
    int start = (int)strlen(response);
    while (start > 0 && response[start - 1] != '=') start--;
    return ends_itself(response) && !strcmp(response + start, sum + k);
}

// Dijkstra's shunting yard over doubles. A value that is no integer is at least 1 / 99^5 away from
// one, far beyond the rounding of a few operations on numbers this small.
typedef struct yard {
    double value[TASK_TEXT_MAX];
    char op[TASK_TEXT_MAX];
    int values, ops;
} yard;

static int binding(char op) { return op == '(' ? 0 : op == '+' || op == '-' ? 1 : 2; }

static int yard_reduce(yard* y, int least) {
    while (y->ops && binding(y->op[y->ops - 1]) >= least) {
        double b = y->value[--y->values], *a = &y->value[y->values - 1];
        char op = y->op[--y->ops];
        if (op == '/' && fabs(b) < 1e-9) return 0;
        *a = op == '+' ? *a + b : op == '-' ? *a - b : op == '*' ? *a * b : *a / b;
    }
    return 1;
}

static int oracle_countdown(const char* prompt, const char* response) {
    int left[100] = {0}, left_count = 0, expect_value = 1;  // left[v]: how many v are not yet used
    const char* p = prompt;
    for (char* end; *p != ':'; p = *end == ',' ? end + 1 : end, left_count++)
        left[strtol(p, &end, 10)]++;
    long target = strtol(p + 1, NULL, 10);
    if (!ends_itself(response) || strlen(response) >= TASK_TEXT_MAX) return 0;
    yard y = {.values = 0};
    for (p = response; *p != '\n'; p++) {
        if (expect_value && *p == '(') {
            y.op[y.ops++] = '(';
        } else if (expect_value && isdigit((unsigned char)*p)) {
            long v = 0;
            if (*p == '0') return 0;
            for (; isdigit((unsigned char)*p) && v < 100; p++) v = 10 * v + *p - '0';
            if (v > 99 || !left[v]--) return 0;
            left_count--, p--;
            y.value[y.values++] = (double)v;
            expect_value = 0;
        } else if (!expect_value && *p == ')') {
            if (!yard_reduce(&y, 1) || !y.ops) return 0;
            y.ops--;
        } else if (!expect_value && strchr("+-*/", *p)) {
            if (!yard_reduce(&y, binding(*p))) return 0;
            y.op[y.ops++] = *p;
            expect_value = 1;
        } else {
            return 0;
        }
    }
    return !expect_value && !left_count && yard_reduce(&y, 1) && !y.ops &&
           fabs(y.value[0] - (double)target) < 1e-9;
}

typedef struct subject {
    const char* spec;
    int (*oracle)(const char* prompt, const char* response);
} subject;

static const subject SUBJECTS[] = {
    {"chain", oracle_chain},
    {"chain:operands=2", oracle_chain},
    {"chain:operands=32", oracle_chain},
    {"add", oracle_add},
    {"add:digits=1", oracle_add},
    {"add:digits=18", oracle_add},
    {"countdown", oracle_countdown},
    {"countdown:numbers=2,largest=99,target=999", oracle_countdown},
    {"countdown:numbers=4,largest=20", oracle_countdown},
};

// Problems fit the announced sizes and the alphabet; their solution is right, with and without the
// oracle, and no right answer is right for a prompt of another value.
static void test_solutions(void) {
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX], other[TASK_TEXT_MAX];
    int tokens[TASK_TEXT_MAX];
    for (int k = 0; k < COUNT(SUBJECTS); k++) {
        const subject* s = &SUBJECTS[k];
        task t = task_open(s->spec);
        int longest_prompt = 0, longest = 0, bad = 0;
        for (uint32_t i = 0; i < 10000; i++) {
            rng r = rng_at(1, STREAM_PROMPT, 0, i);
            t.problem(&t, &r, prompt);
            t.solution(&t, prompt, response);
            bad += !t.is_prompt(&t, prompt) || !t.verify(&t, prompt, response);
            bad += !s->oracle(prompt, response);
            if (i > 0) bad += t.verify(&t, other, response) != s->oracle(other, response);
            strcpy(other, prompt);
            int n = alphabet_encode(prompt, tokens, TASK_TEXT_MAX);
            int m = alphabet_encode(response, tokens, TASK_TEXT_MAX);
            longest_prompt = n > longest_prompt ? n : longest_prompt;
            longest = m > longest ? m : longest;
            t.example(&t, &r, prompt, response);
            bad += t.verify(&t, prompt, response) != s->oracle(prompt, response);
            m = alphabet_encode(response, tokens, TASK_TEXT_MAX);
            longest = m > longest ? m : longest;
        }
        CHECK(bad == 0, "%s: %d of 10000 problems, e.g. \"%s\"", s->spec, bad, prompt);
        CHECK(longest_prompt == t.max_prompt, "%s: %d, expected %d", s->spec, longest_prompt,
              t.max_prompt);
        CHECK(longest == t.max_response, "%s: %d, expected %d", s->spec, longest, t.max_response);
    }
}

// Solutions of countdown: the larger value first, no parentheses but those that are needed.
static void test_countdown_form(void) {
    const char* cases[][2] = {
        {"1,2,7:10=", "7+2+1\n"}, {"2,3,7:42=", "7*3*2\n"}, {"2,3,4:20=", "(3+2)*4\n"}};
    task t = task_open("countdown");
    for (int i = 0; i < COUNT(cases); i++) {
        char response[TASK_TEXT_MAX];
        t.solution(&t, cases[i][0], response);
        CHECK(!strcmp(response, cases[i][1]), "%s is solved by %s", cases[i][0], response);
    }
}

static void check_against_oracle(const task* t, const subject* s, const char* prompt,
                                 const char* response, int* right) {
    int expected = s->oracle(prompt, response);
    CHECK(t->verify(t, prompt, response) == expected, "%s: \"%s\" \"%s\" should be %d", s->spec,
          prompt, response, expected);
    *right += expected;
}

// Every answer that differs from a right one in one character: replaced, removed or put in.
static void test_mutations(void) {
    static const char letters[] = "\n0123456789+-=:*/(),;<> ?.x\r\t\xff";
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX], changed[TASK_TEXT_MAX + 1];
    for (int k = 0; k < COUNT(SUBJECTS); k++) {
        const subject* s = &SUBJECTS[k];
        task t = task_open(s->spec);
        int right = 0, total = test_passed + test_failed;
        for (uint32_t i = 0; i < 20; i++) {
            task_training_prompt(&t, 2, 0, i, prompt);
            t.solution(&t, prompt, response);
            int n = (int)strlen(response);
            for (int at = 0; at <= n; at++) {
                memcpy(changed, response, (size_t)at);
                if (at < n) {
                    strcpy(changed + at, response + at + 1);
                    check_against_oracle(&t, s, prompt, changed, &right);
                }
                for (const char* c = letters; *c; c++) {
                    changed[at] = *c;
                    strcpy(changed + at + 1, response + at);
                    check_against_oracle(&t, s, prompt, changed, &right);
                    if (at == n || *c == response[at]) continue;
                    strcpy(changed + at + 1, response + at + 1);
                    check_against_oracle(&t, s, prompt, changed, &right);
                }
            }
        }
        total = test_passed + test_failed - total;
        CHECK(total > 2000 && right < total, "%s: %d of %d mutations are right", s->spec, right,
              total);
    }
}

// Random bytes, random letters, and right answers with a few random edits.
static void test_fuzz(void) {
    static const char letters[] = "\n0123456789+-=:*/()";
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX];
    for (int k = 0; k < COUNT(SUBJECTS); k++) {
        const subject* s = &SUBJECTS[k];
        task t = task_open(s->spec);
        int right = 0;
        for (uint32_t i = 0; i < 20000; i++) {
            rng r = rng_at(3, STREAM_SAMPLE, (uint32_t)k, i);
            task_training_prompt(&t, 3, 0, i / 16, prompt);
            t.solution(&t, prompt, response);
            int n = (int)strlen(response), edits = 1 + (int)rng_below(&r, 4);
            if (i % 4 < 2) n = edits = (int)rng_below(&r, 40);
            for (int e = 0; e < edits; e++) {
                int at = i % 4 < 2 ? e : (int)rng_below(&r, (uint32_t)n);
                response[at] = i % 4 == 0 ? (char)(1 + rng_below(&r, 255))
                                          : letters[rng_below(&r, COUNT(letters) - 1)];
            }
            response[n] = 0;
            check_against_oracle(&t, s, prompt, response, &right);
            // The same bytes as a prompt: nothing is right for what is no prompt.
            if (!t.is_prompt(&t, response))
                CHECK(!t.verify(&t, response, prompt), "\"%s\" is right", prompt);
        }
        CHECK(right > 0, "%s: not one of the edited answers is right", s->spec);
    }
}

// ---------------------------------------------------------------------------------------------
// The draw of prompts.

typedef char text[TASK_TEXT_MAX];

static int compare_texts(const void* a, const void* b) { return strcmp(a, b); }

static void test_sets_are_disjoint(void) {
    enum { DRAWS = 100000, WIDTH = 32 };
    const char* specs[] = {"chain", "add:digits=2", "countdown"};
    char(*held)[WIDTH] = xalloc(DRAWS, WIDTH, "prompts");
    for (int k = 0; k < COUNT(specs); k++) {
        task t = task_open(specs[k]);
        text prompt, response;
        int shared = 0, misplaced = 0, distinct = 1;
        for (uint32_t i = 0; i < DRAWS; i++) {
            task_held_out_prompt(&t, 4, i, prompt);
            misplaced += !task_is_held_out(prompt);
            strcpy(held[i], prompt);
        }
        qsort(held, DRAWS, WIDTH, compare_texts);
        for (uint32_t i = 0; i < DRAWS; i++) {
            if (i > 0) distinct += strcmp(held[i], held[i - 1]) != 0;
            if (i % 2)
                task_training_prompt(&t, 4, i / 256, i % 256, prompt);
            else
                task_warmup_example(&t, 4, i / 256, i % 256, prompt, response);
            misplaced += task_is_held_out(prompt);
            shared += bsearch(prompt, held, DRAWS, WIDTH, compare_texts) != NULL;
        }
        CHECK(shared == 0, "%s: %d training prompts are held out", t.name, shared);
        CHECK(misplaced == 0, "%s: %d prompts are in the wrong set", t.name, misplaced);
        CHECK(distinct > 100, "%s: only %d prompts are held out", t.name, distinct);
    }
    free(held);
}

// An eighth is held out, whatever the prompt's last digit; and whether a prompt is held out does
// not tell whether its neighbour with another last digit is.
static void test_held_out_share(void) {
    static char held[100][100];
    int total = 0;
    for (int a = 0; a < 100; a++)
        for (int b = 0; b < 100; b++) {
            text prompt;
            sprintf(prompt, "%d+%d=", a, b);
            held[a][b] = (char)task_is_held_out(prompt);
            total += held[a][b];
        }
    check_share(total, 10000, 1.0 / 8, "held-out prompts");
    for (int d = 0; d < 10; d++) {
        int first = 0, last = 0;
        for (int i = 0; i < 1000; i++) {
            first += held[10 * d + i % 10][i / 10];
            last += held[i / 10][10 * (i % 10) + d];
        }
        check_share(first, 1000, 1.0 / 8, "held-out prompts of one first digit");
        check_share(last, 1000, 1.0 / 8, "held-out prompts of one last digit");
        for (int e = 0; e < d; e++) {
            int both = 0;
            for (int i = 0; i < 1000; i++)
                both += held[i / 10][10 * (i % 10) + d] && held[i / 10][10 * (i % 10) + e];
            check_share(both, 1000, 1.0 / 64, "pairs of prompts that are both held out");
        }
    }
}

static void test_reproducible(void) {
    const char* frozen[][5] = {
        {"chain", "9+1+3-5-3:", "2+8+1+5-6:", "7+9-1+2+2:", "7+9=16-1=15+2=16+2=18\n"},
        {"add", "907+364=", "483+260=", "417+788=", "7+8+0=14,1+8+1=10,4+7+1=12=1204\n"},
        {"countdown", "9,1,8:2=", "6,1,3:24=", "8,2,5:1=", "8*(5-2)\n"},
    };
    const uint32_t example[] = {18, 13, 14};  // answers with an error in them
    for (int k = 0; k < COUNT(frozen); k++) {
        task t = task_open(frozen[k][0]);
        text got[4], again;
        task_training_prompt(&t, 42, 3, 7, got[0]);
        task_held_out_prompt(&t, 42, 5, got[1]);
        task_warmup_example(&t, 42, 2, example[k], got[2], got[3]);
        for (int i = 0; i < 4; i++)
            CHECK(!strcmp(got[i], frozen[k][i + 1]), "%s %d is \"%s\", expected \"%s\"", t.name, i,
                  got[i], frozen[k][i + 1]);
        int same[4] = {0};
        for (uint32_t i = 0; i < 100; i++) {
            text base, response;
            task_training_prompt(&t, 42, i, i, base);
            task_training_prompt(&t, 42, i, i, again);
            CHECK(!strcmp(base, again), "%s: the same arguments gave two prompts", t.name);
            task_training_prompt(&t, 43, i, i, again);
            same[0] += !strcmp(base, again);
            task_training_prompt(&t, 42, i + 1, i, again);
            same[1] += !strcmp(base, again);
            task_training_prompt(&t, 42, i, i + 1, again);
            same[2] += !strcmp(base, again);
            task_warmup_example(&t, 42, i, i, again, response);
            same[3] += !strcmp(base, again);
        }
        for (int i = 0; i < 4; i++)
            CHECK(same[i] < 10, "%s: %d of 100 prompts ignore argument %d", t.name, same[i], i);
    }
}

// ---------------------------------------------------------------------------------------------
// The warm-up corpora.

enum { EXAMPLES = 20000 };

// The chance that a worked answer of the chain is right: its errors cancel modulo 100.
static double chance_of_chain(int steps, double error) {
    static const int off[6] = {1, -1, 2, -2, 10, -10};
    double p[100] = {1};
    for (int s = 0; s < steps; s++) {
        double next[100];
        for (int v = 0; v < 100; v++) {
            next[v] = (1 - error) * p[v];
            for (int k = 0; k < 6; k++) next[v] += error / 6 * p[(v + off[k] + 100) % 100];
        }
        memcpy(p, next, sizeof p);
    }
    return p[0];
}

// Reads a worked answer of the chain: counts its steps by how far off they are (modulo 100);
// 0 if it does not copy the prompt or breaks the form.
static int read_chain_steps(const char* prompt, const char* work, int by_off[100]) {
    int total = prompt[0] - '0';
    if (*work++ != *prompt++) return 0;
    for (; *prompt != ':'; prompt += 2, work += 5) {
        if (work[0] != prompt[0] || work[1] != prompt[1] || work[2] != '=') return 0;
        if (!isdigit((unsigned char)work[3]) || !isdigit((unsigned char)work[4])) return 0;
        int right = total + (prompt[0] == '+' ? 1 : -1) * (prompt[1] - '0');
        total = 10 * (work[3] - '0') + work[4] - '0';
        by_off[(total - right + 200) % 100]++;
    }
    return !strcmp(work, "\n");
}

static void test_chain_corpus(void) {
    task t = task_open("chain");
    int guesses = 0, worked = 0, right = 0, malformed = 0, guess_off[100] = {0}, off[100] = {0};
    for (uint32_t i = 0; i < EXAMPLES; i++) {
        text prompt, response, solution;
        task_warmup_example(&t, 5, i / 128, i % 128, prompt, response);
        right += t.verify(&t, prompt, response);
        if (strlen(response) == 3) {
            guesses++;
            t.solution(&t, prompt, solution);
            guess_off[(atoi(response) - atoi(solution + strlen(solution) - 3) + 100) % 100]++;
        } else {
            worked++;
            malformed += !read_chain_steps(prompt, response, off);
        }
    }
    CHECK(malformed == 0, "%d worked answers break the form", malformed);
    check_share(guesses, EXAMPLES, 0.5, "guesses");
    check_share(guess_off[0], guesses, 0.1, "right guesses");
    check_share(off[0], 4 * worked, 0.85, "right steps");
    int seen = guess_off[0], steps = off[0];
    for (int d = 1; d <= 9; d++) {
        check_share(guess_off[d], guesses, 0.9 / 18, "guesses too high by one amount");
        check_share(guess_off[100 - d], guesses, 0.9 / 18, "guesses too low by one amount");
        seen += guess_off[d] + guess_off[100 - d];
    }
    int kinds[6] = {1, 99, 2, 98, 10, 90};
    for (int k = 0; k < 6; k++) {
        check_share(off[kinds[k]], 4 * worked, 0.15 / 6, "steps of one error");
        steps += off[kinds[k]];
    }
    CHECK(seen == guesses && steps == 4 * worked, "%d guesses and %d steps are off by more",
          guesses - seen, 4 * worked - steps);
    check_share(right, EXAMPLES, 0.5 * 0.1 + 0.5 * chance_of_chain(4, 0.15), "right answers");
}

// The operands and signs of the chain are drawn evenly, and its sums use the whole range.
static void test_chain_problems(void) {
    task t = task_open("chain:operands=32");
    int lowest = 50, highest = 50;
    for (uint32_t i = 0; i < EXAMPLES; i++) {
        text prompt;
        rng r = rng_at(6, STREAM_PROMPT, 1, i);
        t.problem(&t, &r, prompt);
        int total = prompt[0] - '0';
        for (const char* p = prompt + 1; *p != ':'; p += 2) {
            total += (*p == '+' ? 1 : -1) * (p[1] - '0');
            lowest = total < lowest ? total : lowest;
            highest = total > highest ? total : highest;
        }
    }
    CHECK(lowest == 0 && highest == 99, "partial sums reach from %d to %d", lowest, highest);
    t = task_open("chain:operands=2");
    int first[10] = {0}, second[10] = {0}, plus = 0, free_sign = 0;
    for (uint32_t i = 0; i < EXAMPLES; i++) {
        text prompt;
        rng r = rng_at(6, STREAM_PROMPT, 0, i);
        t.problem(&t, &r, prompt);
        int a = prompt[0] - '0', b = prompt[2] - '0';
        first[a]++, second[b]++;
        if (a >= b) free_sign++, plus += prompt[1] == '+';
    }
    for (int d = 1; d <= 9; d++) {
        check_share(first[d], EXAMPLES, 1.0 / 9, "first operands");
        check_share(second[d], EXAMPLES, 1.0 / 9, "second operands");
    }
    check_share(plus, free_sign, 0.5, "plus signs where both are possible");
}

// Counts the steps of a worked sum by how far off they are (modulo 20); 0 if it does not copy the
// prompt's digits and its own carries, or if the sum it ends with is not that of its steps.
static int read_add_steps(const char* prompt, const char* work, int digits, int by_off[20]) {
    int carry = 0, sum = 0;
    char answer[32] = "";
    for (int i = digits - 1; i >= 0; i--) {
        int a, b, c, n = 0;
        char last;
        if (sscanf(work, "%1d+%1d+%1d=%2d%c%n", &a, &b, &c, &sum, &last, &n) != 5 || n != 9)
            return 0;
        if (a != prompt[i] - '0' || b != prompt[digits + 1 + i] - '0' || c != carry) return 0;
        if (last != (i ? ',' : '=') || sum > 19) return 0;
        by_off[(sum - a - b - c + 20) % 20]++;
        carry = sum / 10;
        answer[i] = (char)('0' + sum % 10);
        work += n;
    }
    if (sum >= 10 && *work++ != '1') return 0;
    return !strncmp(work, answer, (size_t)digits) && !strcmp(work + digits, "\n");
}

static void test_add_corpus(void) {
    task t = task_open("add");
    int guesses = 0, right_guesses = 0, worked = 0, malformed = 0, off[20] = {0};
    for (uint32_t i = 0; i < EXAMPLES; i++) {
        text prompt, response;
        task_warmup_example(&t, 7, i / 128, i % 128, prompt, response);
        if (strchr(response, '=')) {
            worked++;
            malformed += !read_add_steps(prompt, response, 3, off);
            continue;
        }
        guesses++;
        right_guesses += t.verify(&t, prompt, response);
        int a, b, different = 0;
        sscanf(prompt, "%d+%d", &a, &b);
        text sum;
        int n = sprintf(sum, "%d\n", a + b);
        for (int k = 0; k < n; k++) different += sum[k] != response[k];
        malformed += strlen(response) != (size_t)n || different > 1 || response[0] == '0';
    }
    CHECK(malformed == 0, "%d answers break the form", malformed);
    check_share(guesses, EXAMPLES, 0.5, "guesses");
    check_share(right_guesses, guesses, 0.1, "right guesses");
    check_share(off[0], 3 * worked, 0.85, "right steps");
    check_share(off[1], 3 * worked, 0.05, "steps too high by one");
    check_share(off[19], 3 * worked, 0.05, "steps too low by one");
    check_share(off[10], 3 * worked, 0.05, "steps with a wrong carry");
    CHECK(off[0] + off[1] + off[19] + off[10] == 3 * worked, "other errors");
}

// Random expressions use the numbers as they should, and are right by luck alone.
static void test_countdown_corpus(void) {
    task t = task_open("countdown"), guesser = task_open("countdown:guessed=100");
    int right = 0, lucky = 0, malformed = 0;
    for (uint32_t i = 0; i < EXAMPLES; i++) {
        text prompt, response;
        task_warmup_example(&t, 8, i / 128, i % 128, prompt, response);
        right += t.verify(&t, prompt, response);
        task_warmup_example(&guesser, 9, i / 128, i % 128, prompt, response);
        lucky += guesser.verify(&guesser, prompt, response);
        // It is right for one target: try them all.
        int found = 0;
        for (int target = 1; target <= 729 && !found; target++) {
            text numbers;
            sprintf(numbers, "%.*s%d=", (int)(strchr(prompt, ':') + 1 - prompt), prompt, target);
            found = t.verify(&t, numbers, response);
        }
        malformed += !found;
    }
    CHECK(malformed == 0, "%d random expressions have no value from 1 to 9^3", malformed);
    double luck = (double)lucky / EXAMPLES, p = 0.4 + 0.6 * luck;
    // Both counts are random here: the variances add.
    double sd = sqrt(p * (1 - p) / EXAMPLES + 0.36 * luck * (1 - luck) / EXAMPLES);
    CHECK_NEAR((double)right / EXAMPLES, p, 5 * sd, "right answers of countdown");
    CHECK(luck < 0.25, "%.3f of the random expressions are right", luck);
}

static void test_corpus_extremes(void) {
    const char* specs[] = {"chain:guessed=0,step-error=0",
                           "chain:guessed=100,guess-error=0",
                           "chain:guessed=100,guess-error=100",
                           "add:guessed=0,step-error=0",
                           "add:guessed=100,guess-error=0",
                           "add:guessed=100,guess-error=100",
                           "countdown:guessed=0"};
    for (int k = 0; k < COUNT(specs); k++) {
        task t = task_open(specs[k]);
        int right = 0;
        for (uint32_t i = 0; i < 1000; i++) {
            text prompt, response;
            task_warmup_example(&t, 10, 0, i, prompt, response);
            right += t.verify(&t, prompt, response);
        }
        int expected = strstr(specs[k], "guess-error=100") ? 0 : 1000;
        CHECK(right == expected, "%s: %d of 1000 are right, expected %d", specs[k], right,
              expected);
    }
}

// ---------------------------------------------------------------------------------------------
// Opening, and what must be refused.

static void open_and_draw(const void* spec) {
    task t = task_open((const char*)spec);
    text prompt;
    task_training_prompt(&t, 1, 0, 0, prompt);
}

static void problem_training(const task* t, rng* r, char prompt[TASK_TEXT_MAX]) {
    (void)t, (void)r;
    strcpy(prompt, "123+458=");
}

static void problem_held_out(const task* t, rng* r, char prompt[TASK_TEXT_MAX]) {
    (void)t, (void)r;
    strcpy(prompt, "0+0=");
}

static void draw_from_nothing(const void* set) {
    int held_out = !strcmp((const char*)set, "held-out");
    task t = {.name = "tiny", .problem = held_out ? problem_training : problem_held_out};
    text prompt;
    if (held_out) task_held_out_prompt(&t, 1, 0, prompt);
    task_training_prompt(&t, 1, 0, 0, prompt);
}

static void solve(const void* prompt) {
    task t = task_open("countdown");
    text response;
    t.solution(&t, (const char*)prompt, response);
}

static void test_refusals(void) {
    static const struct {
        const char *spec, *words[REFUSAL_WORDS];
    } cases[] = {
        {"", {"task", "chain, add, countdown"}},
        {"chian", {"\"chian\"", "mean chain"}},
        {"Chain", {"\"Chain\"", "mean chain"}},
        {"chain ", {"\"chain", "mean chain"}},
        {"cha", {"mean chain"}},
        {"chains", {"mean chain"}},
        {"cuntdwn", {"mean countdown"}},
        {"count", {"mean countdown"}},
        {"countdwon", {"mean countdown"}},
        {"dad", {"mean add"}},
        {"ch\nain", {"\"ch?ain\"", "mean chain"}},
        {"chain:operands=5\n", {"operands=5? is", "2 to 32"}},
        {":operands=5", {"task", "chain, add, countdown"}},
        {"a-name-much-longer-than-any-name-that-a-task-could-have", {"did you mean"}},
        {"chain:", {"option", "missing", "operands=5"}},
        {"chain:operands=5,", {"option", "missing"}},
        {"chain:,operands=5", {"option", "missing"}},
        {"chain:operands=5,,guessed=1", {"option", "missing"}},
        {"chain:operand=5", {"\"operand\"", "mean operands", "guess-error, step-error"}},
        {"chain:operands:5", {"\"operands:5\"", "mean operands"}},
        {"chain:step_error=5", {"mean step-error"}},
        {"chain:digits=3", {"\"digits\"", "operands, guessed"}},
        {"chain:=5", {"no option", "operands"}},
        {"chain:guessed", {"guessed", "0 to 100"}},
        {"chain:guessed=", {"guessed=", "0 to 100"}},
        {"chain:guessed=,operands=5", {"guessed= is", "0 to 100"}},
        {"chain:guessed=-", {"guessed=-", "0 to 100"}},
        {"chain:operands", {"operands", "2 to 32", "operands=5"}},
        {"chain:operands=", {"operands", "2 to 32"}},
        {"chain:operands=five", {"operands=five", "2 to 32"}},
        {"chain:operands=5x", {"operands=5x", "2 to 32"}},
        {"chain:operands=5.0", {"operands=5.0", "2 to 32"}},
        {"chain:operands= 5", {"2 to 32"}},
        {"chain:operands=+5", {"operands=+5", "2 to 32"}},
        {"chain:operands=0x5", {"operands=0x5", "2 to 32"}},
        {"chain:operands==5", {"operands==5", "2 to 32"}},
        {"chain:operands=1", {"operands=1", "2 to 32"}},
        {"chain:operands=33", {"operands=33", "2 to 32"}},
        {"chain:operands=-5", {"operands=-5", "2 to 32"}},
        {"chain:operands=4294967301", {"operands=4294967301", "2 to 32"}},
        {"chain:operands=99999999999999999999", {"2 to 32"}},
        {"chain:guessed=101", {"guessed=101", "0 to 100"}},
        {"chain:guessed=-1", {"guessed=-1", "0 to 100"}},
        {"chain:operands=5,operands=5", {"operands", "given twice"}},
        {"add:digits=0", {"digits=0", "1 to 18"}},
        {"add:digits=19", {"digits=19", "1 to 18"}},
        {"add:operands=3", {"\"operands\"", "digits, guessed"}},
        {"countdown:numbers=7", {"numbers=7", "2 to 6"}},
        {"countdown:largest=100", {"largest=100", "2 to 99"}},
        {"countdown:target=9", {"target=9", "10 to 999"}},
        {"countdown:numbers=3,targets=9", {"\"targets\"", "mean target"}},
    };
    for (int i = 0; i < COUNT(cases); i++)
        check_refusal(open_and_draw, cases[i].spec, cases[i].spec, cases[i].words);
    const char* small[] = {"tiny", "too small", "held-out", NULL};
    check_refusal(draw_from_nothing, "held-out", "no held-out prompts", small);
    small[2] = "training";
    check_refusal(draw_from_nothing, "training", "no training prompts", small);
    check_refusal(solve, "2,2:99=", "unsolvable", (const char* [4]){"2,2:99=", "solution"});
    check_refusal(solve, "2,2", "not a prompt", (const char* [4]){"2,2", "prompts"});
}

static void test_options(void) {
    task t = task_open("chain");
    CHECK(!strcmp(t.name, "chain") && t.max_prompt == 10 && t.max_response == 22, "%s %d %d",
          t.name, t.max_prompt, t.max_response);
    int expected[4] = {5, 50, 90, 15};
    CHECK(!memcmp(t.option, expected, sizeof expected),
          "the defaults of chain are not the recipe's");
    t = task_open("chain:step-error=0,operands=7");
    CHECK(t.option[0] == 7 && t.option[1] == 50 && t.option[3] == 0, "options in another order");
    // The extremes of every range open, draw and fit.
    const char* extremes[] = {"chain:operands=2,guessed=0,guess-error=100,step-error=100",
                              "chain:operands=32,guessed=100",
                              "add:digits=1",
                              "add:digits=18,guessed=0",
                              "countdown:numbers=2,largest=2,target=10",
                              "countdown:numbers=6,largest=99,target=10",
                              "countdown:numbers=6,largest=99,target=999"};
    for (int k = 0; k < COUNT(extremes); k++) {
        t = task_open(extremes[k]);
        for (uint32_t i = 0; i < 50; i++) {
            text prompt, response, solution;
            task_warmup_example(&t, 11, 0, i, prompt, response);
            t.solution(&t, prompt, solution);
            CHECK((int)strlen(prompt) <= t.max_prompt && (int)strlen(response) <= t.max_response &&
                      (int)strlen(solution) <= t.max_response && t.max_response < TASK_TEXT_MAX &&
                      t.verify(&t, prompt, solution),
                  "%s: \"%s\" \"%s\"", extremes[k], prompt, response);
        }
    }
}

static void test_list(void) {
    static const char* const words[] = {
        "chain ",     "operands=5 ", "(2 to 32)",  "guessed=50 ",    "guess-error=90 ",
        "add ",       "digits=3 ",   "(1 to 18)",  "step-error=15 ", "countdown ",
        "numbers=3 ", "largest=9 ",  "target=99 ", "guessed=60 ",    "(10 to 999)"};
    static char list[8192];
    FILE* f = tmpfile();
    task_list(f);
    rewind(f);
    list[fread(list, 1, sizeof list - 1, f)] = 0;
    fclose(f);
    for (int i = 0; i < COUNT(words); i++) CHECK(strstr(list, words[i]), "no \"%s\"", words[i]);
    for (char* line = strtok(list, "\n"); line; line = strtok(NULL, "\n"))
        CHECK(strlen(line) <= 100, "a line of %zu columns: %s", strlen(line), line);
}

int main(void) {
    test_traps();
    test_bytes_before_the_response();
    test_deep_and_long();
    test_solutions();
    test_countdown_form();
    test_mutations();
    test_fuzz();
    test_sets_are_disjoint();
    test_held_out_share();
    test_reproducible();
    test_chain_corpus();
    test_chain_problems();
    test_add_corpus();
    test_countdown_corpus();
    test_corpus_extremes();
    test_refusals();
    test_options();
    test_list();
    return test_report();
}
