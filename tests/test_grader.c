// graders: hand-made responses are judged as the tables in docs/rewards.md say; sums, weights and
// options; and random bytes never do harm. dev/text/test_graders.py compares with other programs.
#include <unistd.h>

#include "base/numerics.h"
#include "fuzz.h"
#include "refusal.h"
#include "text/boxed.h"
#include "text/expression.h"
#include "text/grader.h"
#include "text/number.h"

#define WORDS (const char* [REFUSAL_WORDS])

typedef struct row {
    const char *response, *answer;
    double expected;
} row;

static double grade_one(reward* r, const char* response, const char* answer, int ended) {
    problem p = {.prompt = "p", .answer = answer};
    double total = -1;
    reward_counts c = reward_grade(r, &(graded){&p, response, ended}, 1, &total, NULL);
    CHECK(!c.crashed && !c.timed_out && !c.malformed && !c.extra, "nothing is counted");
    return total;
}

static void check_rows(const char* spec, const row* rows, size_t count) {
    reward* r = reward_open(spec, NULL);
    for (size_t i = 0; i < count; i++) {
        double total = grade_one(r, rows[i].response, rows[i].answer, 1);
        CHECK(total == rows[i].expected, "%s gives %g to \"%s\" for \"%s\"", spec, total,
              rows[i].response, rows[i].answer);
    }
    reward_free(r);
}

static const row EXACT[] = {{"yes", "yes", 1},
                            {" \t\r\n\v\fyes\n", "yes", 1},
                            {"yes", " yes ", 1},
                            {"Yes", "yes", 0},
                            {"yes.", "yes", 0},
                            {"", "", 1},
                            {" \n", "", 1},
                            {"", "yes", 0},
                            {"a  b", "a b", 0},
                            {"a b", "a b", 1},
                            {"ye", "yes", 0},
                            {"yess", "yes", 0},
                            {"\xff\xfe", "\xff\xfe", 1},
                            {"yes\xa0", "yes", 0},
                            {"18.0", "18", 0}};

static const row NUMBER[] = {
    {"#### 18", "18", 1},
    {"so\n#### 18\n", "18", 1},
    {"#### 18", "He has 3 * 6 = <<3*6=18>>18.\n#### 18", 1},
    {"#### 18", "#### 1\n#### 18", 1},
    {"####18", "18", 1},
    {"#### \t18", "18", 1},
    {"####\n18", "18", 0},
    {"18", "18", 0},
    {"### 18", "18", 0},
    {"##### 18", "18", 1},
    {"#### 17\n#### 18", "18", 1},
    {"#### 18\n#### 17", "18", 0},
    {"#### 18\n####", "18", 0},
    {"#### 18\n#### none", "18", 0},
    {"#### 18.0", "18", 1},
    {"#### 018", "18", 1},
    {"#### 18.", "18", 1},
    {"#### 18,", "18", 1},
    {"#### +18", "18", 1},
    {"#### -18", "18", 0},
    {"#### -18", "-18.00", 1},
    {"#### - 18", "-18", 0},
    {"#### --18", "-18", 0},
    {"#### -0", "0", 1},
    {"#### 1,234", "1234", 1},
    {"#### 1234", "1,234", 1},
    {"#### 12,34", "1234", 1},
    {"#### 1,234,567.50", "1234567.5", 1},
    {"#### $18", "18", 1},
    {"#### $-18", "-18", 1},
    {"#### -$18", "-18", 1},
    {"#### $$18", "18", 0},
    {"#### 18 dollars", "18", 1},
    {"#### 18%", "18", 1},
    {"#### 18abc", "18", 1},
    {"#### 18", "$18", 1},
    {"#### 18 or 19", "18", 1},
    {"#### 1.8e1", "18", 0},
    {"#### .5", "0.5", 1},
    {"#### 0.50", ".5", 1},
    {"#### 1/2", "0.5", 1},
    {"#### 2/4", "1/2", 1},
    {"#### -1/3", "-2/6", 1},
    {"#### 1/3", "0.333333333333333333333333333", 0},
    {"#### 0.75", "1.5/2", 1},
    {"#### 1/0.25", "4", 1},
    {"#### 0.99/0.33", "891/297", 1},
    {"#### 18/0", "18", 0},
    {"#### 0/0", "0", 0},
    {"#### 0/5", "0", 1},
    {"#### 18/x", "18", 1},
    {"#### 1.2.3", "1.2", 0},
    {"#### 1.5,2", "1.5", 1},
    {"#### 18..", "18", 1},
    {"#### 100000000000000000000000001", "100000000000000000000000000", 0},
    {"#### 100000000000000000000000001", "100000000000000000000000001.0", 1},
    {"#### 9007199254740993", "9007199254740992", 0},
    {"#### 0.1", "0.1000000000000000055511151231257827", 0},
    {"#### \xef\xbc\x91\xef\xbc\x98", "18", 0},
    {"#### \xe2\x88\x92"
     "18",
     "-18", 0},
    {"#### 18\xff", "18", 1},
    {"", "18", 0},
    {"####", "18", 0},
    {"#### 18", "many", 0},
    {"#### 18", "", 0},
    {"#### 18", "18 apples", 0},
    {"#### ", "", 0}};

static const row LAST[] = {{"18", "18", 1},
                           {"The sum of 8 and 10 is 18.", "18", 1},
                           {"The sum of 8 and 10 is 18, I think", "18", 1},
                           {"8 + 10 = 18", "18", 1},
                           {"18 = 8 + 10", "18", 0},
                           {"#### 17 and 18", "18", 0},
                           {"#### 18 and 17", "18", 1},
                           {"#### none, 18", "18", 0},
                           {"**18**", "18", 1},
                           {"\\boxed{18}", "18", 1},
                           {"$18.00", "18", 1},
                           {"it is -18", "-18", 1},
                           {"it is (-18)", "-18", 1},
                           {"-18", "-18", 1},
                           {"26-8", "-8", 0},
                           {"26-8", "8", 1},
                           {"26 -8", "-8", 1},
                           {"(3)-8", "8", 1},
                           {"x-8", "8", 1},
                           {"10+8", "8", 1},
                           {"x=-8", "-8", 1},
                           {"--8", "-8", 1},
                           {"1.2.3", "3", 0},
                           {"version 7 or 1.2.3", "7", 1},
                           {"1/2/2020", "2020", 1},
                           {"half is 1/2", "0.5", 1},
                           {"3/0", "3", 0},
                           {"18 ...", "18", 1},
                           {"18 , . - $ + /", "18", 1},
                           {"H2O", "2", 1},
                           {"1,234 apples", "1234", 1},
                           {"none", "0", 0},
                           {"", "0", 0},
                           {"\xff\xfe 18 \xff", "18", 1}};

// Hendrycks' rule, and what is added to it.
static const row BOXED[] = {
    {"\\boxed{18}", "18", 1},
    {"so $\\boxed{18}$.", "18", 1},
    {"18", "18", 0},
    {"\\boxed{17} no, \\boxed{18}", "18", 1},
    {"\\boxed{18} no, \\boxed{17}", "18", 0},
    {"\\boxed{18} no, \\boxed{17", "18", 0},
    {"\\boxed{\\frac{1}{2}}", "The answer is $\\boxed{\\frac{1}{2}}$.", 1},
    {"\\boxed{\\frac{1}{2}}", "\\frac12", 1},
    {"\\boxed{\\dfrac{1}{2}}", "\\frac{1}{2}", 1},
    {"\\boxed{\\tfrac12}", "\\frac{1}{2}", 1},
    {"\\boxed{\\frac1{72}}", "\\frac{1}{72}", 1},
    {"\\boxed{\\frac{72}1}", "\\frac{72}{1}", 0},
    {"\\boxed{1/2}", "\\frac{1}{2}", 1},
    {"\\boxed{0.5}", "\\frac{1}{2}", 1},
    {"\\boxed{.5}", "1/2", 1},
    {"\\boxed{0.25}", "1/4", 0},
    {"\\boxed{-1/2}", "\\frac{-1}{2}", 1},
    {"\\boxed{a/b}", "\\frac{a}{b}", 0},
    {"\\boxed{01/2}", "1/2", 0},
    {"\\boxed{1/2/3}", "1/2/3", 1},
    {"\\boxed{\\sqrt3}", "\\sqrt{3}", 1},
    {"\\boxed{2\\sqrt3+\\sqrt{5}}", "2\\sqrt{3}+\\sqrt5", 1},
    {"\\boxed{x = 5}", "5", 1},
    {"\\boxed{xyz=5}", "5", 0},
    {"\\boxed{\xc3\xa9y=5}", "5", 1},
    {"\\boxed{x=y=5}", "x=y=5", 1},
    {"\\boxed{ 5 }", "5", 1},
    {"\\boxed{5\\text{ cm}}", "5", 1},
    {"\\boxed{5\\text{cm}}", "5", 0},
    {"\\boxed{50\\%}", "50", 1},
    {"\\boxed{\\$50}", "50", 1},
    {"\\boxed{90^\\circ}", "90", 1},
    {"\\boxed{90^{\\circ}}", "90", 1},
    {"\\boxed{\\left(1,2\\right)}", "(1, 2)", 1},
    {"\\boxed{(1,2)}", "(2,1)", 0},
    {"\\boxed{10,\\!000}", "10,000", 1},
    {"\\boxed{10,000}", "10000", 1},
    {"\\boxed{10000}", "10,000", 1},
    {"\\boxed{1,2}", "12", 0},
    {"\\boxed{1000,000}", "1000000", 0},
    {"\\boxed{18.0}", "18", 1},
    {"\\boxed{018}", "18", 1},
    {"\\boxed{-18.0}", "-18", 1},
    {"\\boxed{+18}", "18", 0},
    {"\\boxed{18.0}", "18.1", 0},
    {"\\boxed{0.50}", "1/2", 0},
    {"\\boxed 5", "5", 1},
    {"$\\boxed 5$ and 6", "5", 1},
    {"\\boxed {5}", "5", 1},
    {"\\boxed5", "5", 0},
    {"\\boxed", "", 0},
    {"\\boxed{}", "", 1},
    {"\\boxed{}", "5", 0},
    {"\\fbox{5}", "5", 0},
    {"\\boxed{\\text{(A)}}", "\\text{(A)}", 1},
    {"\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", 1},
    {"\\boxed{5\\sqrt}", "5\\sqrt", 1},
    {"\\boxed{5 \\sqrt}", "5\\sqrt", 0},
    {"\\boxed{\\frac}", "\\frac", 1},
    {"\\boxed{\\frac1}", "\\frac1", 1},
    {"\\boxed{1\\text{ a}\\text{ b}}", "1", 0},
    {"\\boxed{5", "5", 0},
    {"\\boxed{\xff}", "\xff", 1},
    {"\\boxed{\\frac\xc3\xa9\xc3\xa8}", "\\frac{\xc3\xa9}{\xc3\xa8}", 1},
    {"\\boxed{5}", "\\boxed{5", 0}};

static const row EXPRESSION[] = {
    {"7*3+5", "3,5,7:26", 1},
    {"7*3+5", "3,5,7:26=", 1},
    {" ( 7 * 3 ) + 5 \n", "3,5,7:26", 1},
    {"5+3*7", "3,5,7:26", 1},
    {"(5+3)*7", "3,5,7:56", 1},
    {"7*3+5 = 26", "3,5,7:26", 0},
    {"26", "3,5,7:26", 0},
    {"7*3+5+0", "3,5,7:26", 0},
    {"7*3", "3,5,7:21", 0},
    {"7*3+5*1", "3,5,7:26", 0},
    {"3*7+3+5", "3,5,7:29", 0},
    {"8/(3-8/3)", "3,3,8,8:24", 1},
    {"8/(3-8/3)", "3,8,3,8:24", 1},
    {"1/3+2", "1,2,3:2", 0},
    {"2/3", "2,3:2", 0},
    {"5/(3-3)", "3,3,5:1", 0},
    {"-3+5", "3,5:2", 0},
    {"5--3", "3,5:8", 0},
    {"5-(-3)", "3,5:8", 0},
    {"+5-3", "3,5:2", 0},
    {"5**3", "3,5:125", 0},
    {"5//3", "3,5:1", 0},
    {"5.0-3", "3,5:2", 0},
    {"05-3", "3,5:2", 0},
    {"5 3-", "3,5:2", 0},
    {"1 2-3", "3,12:9", 0},
    {"(5-3", "3,5:2", 0},
    {"5-3)", "3,5:2", 0},
    {"5\n-3", "3,5:2", 0},
    {"5\xc3\x97"
     "3",
     "3,5:15", 0},
    {"sum([3,5])", "3,5:8", 0},
    {"", "3,5:2", 0},
    {"((((((((((1))))))))))+((((((((((2))))))))))+((((((((((3))))))))))+((((((((((4))))))))))",
     "1,2,3,4:10", 1},
    {"5-3", "3,5", 0},
    {"5-3", "none", 0},
    {"5-3", "", 0}};

#define CHECK_ROWS(spec, rows) check_rows(spec, rows, sizeof rows / sizeof *rows)

static void test_options(void) {
    reward* r = reward_open("number:last,ended", NULL);
    CHECK(grade_one(r, "18", "18", 1) == 1 && grade_one(r, "18", "18", 0) == 0, "ended");
    reward_free(r);
    r = reward_open("number:ended", NULL);
    CHECK(grade_one(r, "18", "18", 1) == 0 && grade_one(r, "#### 18", "18", 1) == 1, "not last");
    reward_free(r);
    r = reward_open("exact", NULL);
    CHECK(grade_one(r, "18", "18", 0) == 1, "without ended");
    CHECK(grade_one(r, "18", NULL, 1) == 0, "without an answer");
    reward_free(r);
    static const row tag[] = {{"<answer>yes</answer>", "yes", 1},
                              {"a <answer>\nyes\n</answer> b", "yes", 1},
                              {"yes", "yes", 0},
                              {"<answer>yes", "yes", 0},
                              {"yes</answer>", "yes", 0},
                              {"</answer>yes<answer>", "yes", 0},
                              {"<answer>no</answer><answer>yes</answer>", "yes", 1},
                              {"<answer>yes</answer><answer>no</answer>", "yes", 0},
                              {"<answer>yes</answer><answer>no", "yes", 1},
                              {"<answer>no<answer>yes</answer>", "yes", 1},
                              {"<answers>yes</answers>", "yes", 0},
                              {"<answer></answer>", "", 1}};
    CHECK_ROWS("exact:tag=answer", tag);
    CHECK_ROWS("1*exact:tag=answer", tag);
    static const row both[] = {{"<a>so 18</a> 19", "18", 1}, {"<a>so 19</a> 18", "18", 0}};
    CHECK_ROWS("number:tag=a,last", both);
}

static void check_keys(const reward* r, const char* const* keys) {
    for (int k = 0; k < reward_terms(r); k++) {
        char* key = reward_term_key(r, k);
        CHECK(!strcmp(key, keys[k]), "term %d is %s, expected %s", k, key, keys[k]);
        free(key);
    }
}

// No two terms have one key, and a key holds no option.
static void test_keys(void) {
    reward* r = reward_open(
        "exact+number:last+exact:tag=a+expression+number+2*exact:ended+boxed:ended+boxed", NULL);
    CHECK(reward_terms(r) == REWARD_TERMS_MAX, "%d terms", reward_terms(r));
    check_keys(r, (const char*[]){"exact", "number", "exact_2", "expression", "number_2", "exact_3",
                                  "boxed", "boxed_2"});
    reward_free(r);
}

static void test_sum(void) {
    reward* r = reward_open("2*number:last+-0.5*exact+1e-1*boxed:ended+expression", NULL);
    CHECK(reward_terms(r) == 4, "%d terms", reward_terms(r));
    problem p = {.prompt = "p", .answer = "18"}, q = {.prompt = "q", .answer = "3,5:8"};
    graded items[] = {
        {&p, "18", 1}, {&p, "\\boxed{18}", 1}, {&p, "\\boxed{18}", 0}, {&q, "3+5", 1}};
    static const double expected[4][4] = {{1, 1, 0, 0}, {1, 0, 1, 0}, {1, 0, 0, 0}, {0, 0, 0, 1}};
    double total[4], terms[4][4];
    reward_grade(r, items, 4, total, &terms[0][0]);
    for (int i = 0; i < 4; i++) {
        const double* e = expected[i];
        CHECK_NEAR(total[i], 2 * e[0] - 0.5 * e[1] + 0.1 * e[2] + e[3], 1e-15, "a sum");
        for (int k = 0; k < 4; k++) CHECK(terms[i][k] == e[k], "%d, %d: %g", i, k, terms[i][k]);
    }
    reward_free(r);
}

static void test_command(void) {
    static const char program[] =
        "while read -r l; do case $l in *bad*) echo x;; *die*) exit 1;; *) echo 0.5;; esac; done";
    problem p = {.prompt = "p", .answer = "good"};
    graded items[] = {
        {&p, "good", 1}, {&p, "bad", 1}, {&p, "good", 0}, {&p, "die", 1}, {&p, "die", 0}};
    double total[5], terms[5][2];
    for (int skip = 0; skip < 2; skip++) {
        command_config config = {program, 1, 20, skip};
        reward* r = reward_open("exact+0.2*cmd:ended", &config);
        double none = skip ? NAN : 0;
        reward_counts c = reward_grade(r, items, 5, total, &terms[0][0]);
        CHECK(c.malformed == 1 && c.crashed == 2 && !c.timed_out && !c.extra, "the counts");
        // What has not ended is worth 0, whatever the command does.
        double expected[5][2] = {{1, 0.5}, {0, none}, {1, 0}, {0, none}, {0, 0}};
        for (int i = 0; i < 5; i++) {
            double sum = expected[i][0] + 0.2 * expected[i][1];
            CHECK(isnan(sum) ? isnan(total[i]) : total[i] == sum, "%d: %g", i, total[i]);
            CHECK(terms[i][0] == expected[i][0], "%d: exact %g", i, terms[i][0]);
            double e = expected[i][1];
            CHECK(isnan(e) ? isnan(terms[i][1]) : terms[i][1] == e, "%d: cmd %g", i, terms[i][1]);
        }
        reward_free(r);
        r = reward_open(NULL, &config);
        CHECK(reward_terms(r) == 1, "%d terms by default", reward_terms(r));
        check_keys(r, (const char*[]){"cmd"});
        reward_grade(r, items, 4, total, NULL);
        CHECK(total[0] == 0.5 && total[2] == 0.5, "without a spec: %g, %g", total[0], total[2]);
        CHECK(!reward_refusal(r, &(problem){.prompt = "p"}), "cmd needs no answer");
        reward_free(r);
    }
}

static void open_child(const void* spec) {
    reward_free(reward_open(*(const char*)spec ? spec : NULL, NULL));
}

static void unused_command_child(const void* spec) {
    reward_free(reward_open(spec, &(command_config){"cat", 1, 1, 0}));
}

static void test_refusals(void) {
    static const char* const rows[][3] = {
        {"", "--reward cmd needs a program", "--reward-cmd"},
        {"cmd", "needs a program", "--reward-cmd"},
        {"+exact", "no grader is called \"\"", "exact, number, boxed, expression, cmd"},
        {"exact+", "no grader is called \"\"", "exact, number, boxed, expression, cmd"},
        {"exat", "no grader is called \"exat\"", "did you mean exact"},
        {"numbers:last", "no grader is called \"numbers\"", "did you mean number"},
        {"0.5exact", "no grader is called \"0.5exact\"", "exact"},
        {"0*exact", "0 is no weight", "0.5*exact"},
        {"1.2.3*exact", "1.2.3 is no weight", "0.5*exact"},
        {"1e999*exact", "1e999 is no weight", "0.5*exact"},
        {"-*exact", "- is no weight", "0.5*exact"},
        {"1.1e6*exact", "1.1e6 is no weight", "1e-6 to 1e6"},
        {"-9e-7*exact", "-9e-7 is no weight", "1e-6 to 1e6"},
        {"exact:", "no option of exact is called \"\"", "ended, tag=NAME"},
        {"exact:ended,", "no option of exact is called \"\"", "ended, tag=NAME"},
        {"exact:last", "no option of exact is called \"last\"", "(there are ended, tag=NAME)"},
        {"number:lst", "no option of number is called \"lst\"", "did you mean last"},
        {"exact:ended=1", "no option of exact is called \"ended=1\"", "ended"},
        {"exact:tag=", "no option of exact is called \"tag=\"", "did you mean tag=NAME"},
        {"cmd:tag=a", "no option of cmd is called \"tag=a\"", "(there are ended)"},
        {"exact:ended,ended", "ended is given twice", "keep one"},
        {"exact:tag=a,tag=b", "tag is given twice", "keep one"},
        {"exact:tag=abcdefghijklmnopqrstuvwxyz1234567", "more than 31 bytes", "shorter"},
        {"exact+exact", "exact stands there twice", "weight"},
        {"0.1*exact+0.2*exact", "exact stands there twice", "weight"},
        {"cmd+cmd:ended", "cmd stands there twice", "weight"},
        {"exact:tag=a+exact:tag=b+exact:tag=c+exact:tag=d+exact:tag=e+exact:tag=f+exact:tag=g+"
         "exact:tag=h+exact:tag=i",
         "more than 8 graders", "fewer"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_refusal(open_child, rows[i][0], rows[i][0],
                      WORDS{"--reward", rows[i][1], rows[i][2]});
    check_refusal(unused_command_child, "exact", "an unused command",
                  WORDS{"--reward exact does not use the program of --reward-cmd", "+cmd"});
}

static void check_fits(const char* spec, const char* answer, const char* expected) {
    reward* r = reward_open(spec, NULL);
    char* refusal = reward_refusal(r, &(problem){.prompt = "p", .answer = answer});
    CHECK(expected ? refusal && strstr(refusal, expected) : !refusal, "%s: \"%s\": %s", spec,
          answer, refusal ? refusal : "fits");
    free(refusal);
    reward_free(r);
}

// A grader reads the response alone: an answer that stands in the prompt earns nothing.
static void test_answer_in_prompt(void) {
    static const char* const specs[] = {"exact", "number", "number:last", "boxed"};
    problem p = {.prompt = "Is it 18? #### 18 \\boxed{18} 18", .answer = "18"};
    for (int i = 0; i < 4; i++) {
        reward* r = reward_open(specs[i], NULL);
        double total = -1;
        reward_grade(r, &(graded){&p, "I do not know.", 1}, 1, &total, NULL);
        CHECK(total == 0, "%s gives %g", specs[i], total);
        reward_grade(r, &(graded){&p, "", 1}, 1, &total, NULL);
        CHECK(total == 0, "%s gives %g to nothing", specs[i], total);
        reward_free(r);
    }
}

static void test_fits(void) {
    check_fits("exact", "", NULL);
    check_fits("exact", NULL, "it has no answer, which the grader exact needs");
    check_fits("number", "18", NULL);
    check_fits("number", "so\n#### 1,800.5\n", NULL);
    check_fits("number", "18 apples",
               "its answer \"18 apples\" is not what the grader number needs");
    check_fits("number", "", "is not what");
    check_fits("number", "#### ", "is not what");
    check_fits("boxed", "\\frac12", NULL);
    check_fits("boxed", "so \\boxed{5}", NULL);
    check_fits("boxed", "so \\boxed{5", "is not what");
    check_fits("expression", "3,5:8", NULL);
    check_fits("expression", "3,5:8=", NULL);
    check_fits("expression", "3:3", "is not what");
    check_fits("expression", "1,2,3,4,5,6,7:8", "is not what");
    check_fits("exact+number", "x", "number needs");
}

static void test_normal(void) {
    static const char* const rows[][2] = {{"", ""},
                                          {"\\sqrt", NULL},
                                          {"a\\sqrt3\\sqrt", NULL},
                                          {"\\frac", NULL},
                                          {"\\frac1", "\\frac1"},
                                          {"\\frac12\\frac3", "\\frac12\\frac3"},
                                          {"\\frac{1}2", "\\frac{1}2"},
                                          {"\\frac123", "\\frac{1}{2}3"},
                                          {"\\frac1{2}3", "\\frac{1}{2}3"},
                                          {"x .5", "x0.5"},
                                          {"\\text{ a}\\text{ b}", NULL},
                                          {"3\\text{ a", "3"},
                                          {"{.5}", "{0.5}"},
                                          {"-0/5", "-0/5"},
                                          {"0/5", "\\frac{0}{5}"},
                                          {"\\sqrt 3", "\\sqrt{}3"},
                                          {"a=b", "b"},
                                          {"=b", "b"},
                                          {"abc=b", "abc=b"},
                                          {"a=b=c", "a=b=c"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char* s = boxed_normal(rows[i][0]);
        const char* e = rows[i][1];
        CHECK(e ? s && !strcmp(s, e) : !s, "%s becomes %s", rows[i][0], s ? s : "NULL");
        free(s);
    }
}

// ---------------------------------------------------------------------------------------------

// Exact comparison against 64-bit arithmetic: (a / 10^i) / (b / 10^j) and the same with c, d.
static void test_equal(void) {
    rng r = rng_at(1, STREAM_INIT, 0, 0);
    int same = 0;
    for (int i = 0; i < 20000; i++) {
        int64_t v[4];
        char text[2][64];
        for (int k = 0; k < 4; k++) v[k] = 1 + rng_below(&r, 5) * (rng_below(&r, 2) ? 1 : 10);
        number n[2];
        for (int k = 0; k < 2; k++) {
            snprintf(text[k], 64, "%s%d.%d/%d.%d0", rng_below(&r, 4) ? "" : "-", (int)v[2 * k] / 10,
                     (int)v[2 * k] % 10, (int)v[2 * k + 1] / 10, (int)v[2 * k + 1] % 10);
            CHECK(number_read(text[k], &n[k]) && !*n[k].end, "%s", text[k]);
        }
        int expected = v[0] * v[3] == v[2] * v[1] && (*text[0] == '-') == (*text[1] == '-');
        same += expected;
        CHECK(number_equal(&n[0], &n[1]) == expected, "%s and %s", text[0], text[1]);
    }
    CHECK(same > 200, "only %d were the same", same);
    char* digits = xalloc(2 * NUMBER_MAX, 1, "a test");
    memset(digits, '9', NUMBER_MAX);
    number a;
    CHECK(number_read(digits, &a) && number_equal(&a, &a), "%d digits", NUMBER_MAX);
    digits[NUMBER_MAX] = '9';
    CHECK(!number_read(digits, &a) && !number_last(digits, &a), "a digit more");
    memset(digits, '9', 2 * NUMBER_MAX - 1);
    digits[NUMBER_MAX - 1] = '/';
    CHECK(number_read(digits, &a) && number_equal(&a, &a), "a long fraction");
    free(digits);
}

static reward* fuzzed[4];

// A text of pieces that graders look for and of random bytes; "" at times.
static void random_text(rng* r, char text[512]) {
    static const char* const pieces[] = {
        "####", "\\boxed{", "}",       "{",     "\\frac", "\\sqrt", "1",    "23",       "0",
        ".",    ",",        "/",       "-",     "$",      " ",      "=",    "\\text{ ", "(",
        ")",    "*",        "+",       "<a>",   "</a>",   "\n",     "\xff", "\xc3\xa9", "0.5",
        "\\%",  "\\left",   "^\\circ", "3,5:8", "3+5",    "tfrac",  "\\\\", "\\boxed "};
    *text = 0;
    for (uint32_t k = rng_below(r, 20); k > 0; k--)
        strcat(text, pieces[rng_below(r, sizeof pieces / sizeof *pieces)]);
    for (uint32_t k = rng_below(r, 3), n = (uint32_t)strlen(text); k > 0 && n; k--)
        text[rng_below(r, n)] = (char)(1 + rng_below(r, 255));
}

static void fuzz_case(long which) {
    rng r = rng_at(9, STREAM_INIT, (uint32_t)which, 0);
    char response[512], answer[512];
    random_text(&r, response);
    random_text(&r, answer);
    for (int i = 0; i < 4; i++) {
        problem p = {.prompt = "p", .answer = answer};
        graded item = {&p, response, 1};
        double first, again;
        reward_grade(fuzzed[i], &item, 1, &first, NULL);
        reward_grade(fuzzed[i], &item, 1, &again, NULL);
        char* refusal = reward_refusal(fuzzed[i], &p);
        if (first != again || (first != 0 && first != 1) || (refusal && first)) abort();
        free(refusal);
    }
    char *x = boxed_normal(answer), *y = boxed_normal(response);
    if (!boxed_equal(answer, answer)) abort();
    if (boxed_equal(answer, response) != boxed_equal(response, answer)) abort();
    free(x);
    free(y);
}

static void test_fuzz(void) {
    static const char* const specs[] = {"exact:tag=a", "number:last", "boxed", "expression"};
    for (int i = 0; i < 4; i++) fuzzed[i] = reward_open(specs[i], NULL);
    fuzz_counts c = fuzz("graders", fuzz_cases(40000), fuzz_case, "");
    CHECK(!c.refused, "%ld texts were fatal", c.refused);
    for (int i = 0; i < 4; i++) reward_free(fuzzed[i]);
}

// A response of a megabyte takes no longer than its length makes plausible. The address sanitizer's
// strstr measures the whole text at every call, so there it is shorter.
static void test_long(void) {
    static const char* const pieces[] = {"1",   "1.", "-",         "1/",       "####", "\\boxed{",
                                         "<a>", "((", "\\boxed{}", "\\frac12", "</a>"};
    static const char* const specs[] = {"exact:tag=a", "number:last", "boxed", "expression"};
    size_t bytes = SANITIZED ? 20000 : 1000000;
    char* text = xalloc(bytes + 20, 1, "a test");
    for (int i = 0; i < 4; i++) {
        reward* r = reward_open(specs[i], NULL);
        for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
            size_t length = strlen(pieces[k]);
            for (size_t at = 0; at < bytes; at += length) memcpy(text + at, pieces[k], length + 1);
            double start = clock_seconds();
            grade_one(r, text, "3,5:8", 1);
            double seconds = clock_seconds() - start;
            CHECK(seconds < 2, "%s took %g s for %s", specs[i], seconds, pieces[k]);
        }
        reward_free(r);
    }
    free(text);
}

int main(void) {
    CHECK_ROWS("exact", EXACT);
    CHECK_ROWS("number", NUMBER);
    CHECK_ROWS("number:last", LAST);
    CHECK_ROWS("boxed", BOXED);
    CHECK_ROWS("expression", EXPRESSION);
    test_options();
    test_keys();
    test_sum();
    test_command();
    test_refusals();
    test_answer_in_prompt();
    test_fits();
    test_normal();
    test_equal();
    test_long();
    test_fuzz();
    return test_report();
}
