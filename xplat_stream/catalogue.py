"""Hand-written words for every shipped label, and the items of three made-up platforms built from them. Pure.

Each platform speaks of a label in words of its own (a shop names products, a video names a subject, a post says what
somebody thinks of it), so that nothing but the meaning of the text carries an interest from one to the next.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from xplat_stream.event import Object

if TYPE_CHECKING:
    from random import Random

    from xplat_stream.taxonomy import Label, Taxonomy

PLATFORMS: Final = ("shop", "video", "social")

_IAB_SHARE: Final = 0.5
_TAGGED_SHARE: Final = 0.3
_SHORTEST_TAG: Final = 4


class Material(NamedTuple):
    """What can be said of one label: shop shelves, things to buy, subjects to film and to talk about."""

    shelves: tuple[str, ...]
    products: tuple[str, ...]
    subjects: tuple[str, ...]


_TEMPLATES: Final = {
    "shop": (
        "{}", "{}, gift edition", "{} for beginners", "{}, bestseller of the year", "Premium {}", "{}, two pieces",
    ),
    "video": (
        "{}, explained in ten minutes", "{}: what beginners get wrong", "The full story of {}",
        "{}, episode by episode", "Everything we know about {}", "An expert reacts to {}",
        "{}, live with the community",
    ),
    "social": (
        "Spent the whole weekend on {} and loved it", "Anyone else here obsessed with {}?",
        "Hot take: {} deserves far more attention", "Can somebody recommend a good start into {}?",
        "My notes on {}, thread below", "Three years ago I knew nothing about {}. Look at me now",
        "Unpopular opinion about {}, please be kind",
    ),
}  # fmt: skip

# slug | shelves | products | subjects; one line break after each bar, entries joined by semicolons
_WORDS: Final = """
academic-interests | Laboratory; Popular Science; Astronomy |
student microscope with slides; reflector telescope 130 mm; molecular model kit; geology rock sample collection;
fossil excavation set; history of science atlas; human anatomy skeleton model; linguistics field guide |
black holes and general relativity; the archaeology of Pompeii; CRISPR gene editing; peer review in journals; the
periodic table; quantum entanglement; the evolution of early humans; plate tectonics; the philosophy of science;
medieval history research; a proof of the prime number theorem; marine biology fieldwork
automotive | Car Parts; Motor Oil; Motorcycles |
all-season tires 205/55 R16; fully synthetic engine oil 5W-30; ceramic brake pads, front axle; dash cam for the
windshield; home charger for electric cars; roof box for the family car; OBD2 diagnostic scanner; leather motorcycle
jacket |
restoring a classic Porsche 911; the range of electric cars in winter; changing brake discs at home; diesel engine
tuning; buying a used station wagon; self-driving cars on the highway; detailing and waxing a car; motorcycle road
trips; hybrid drivetrains; the new pickup trucks; rally car engineering; manual gearboxes
books-and-literature | Novels; Poetry; Thrillers |
hardcover historical novel; collected poems, annotated; crime thriller paperback; fantasy trilogy box set; e-book
reader with warm light; wooden bookends; reading journal for book lovers; illustrated Jane Austen edition |
Tolstoy's War and Peace; the Booker Prize shortlist; writing a first novel; Scandinavian crime fiction; rereading Jane
Austen; magical realism in Latin American novels; the poems of Emily Dickinson; starting a book club; unreliable
narrators; Shakespeare's sonnets; independent bookshops; science fiction short stories
business-and-finance | Office; Management; Accounting |
strategic management handbook; invoice and receipt book; accounting software for small companies; pitch deck workbook
for founders; point of sale card terminal; supply chain management textbook; conference room whiteboard; business plan
template |
quarterly earnings of big companies; venture capital for startups; supply chain disruption; mergers and acquisitions;
central bank interest rates; scaling a small business; corporate governance; a company's balance sheet; the startup
pitch; global trade tariffs; leadership in large organizations; business models of airlines
careers | Job Hunting; Resumes; Workplace Skills |
resume writing guide; interview preparation cards; career change workbook; professional portfolio folder; job search
planner; salary negotiation handbook; networking business cards; cover letter template pack |
answering tough job interview questions; negotiating a higher salary; changing career at forty; writing a cover
letter; getting promoted; the first day in a new job; remote job offers; resume mistakes recruiters hate; finding a
mentor at work; quitting a job gracefully; apprenticeships; headhunters and recruiters
education | School Supplies; Textbooks; Language Learning |
algebra exercise book; Spanish vocabulary flash cards; scientific calculator for school; online course voucher; SAT
preparation book; children's globe for the classroom; handwriting practice pad; teacher's lesson planner |
learning Spanish as an adult; preparing for final exams; Montessori classrooms; university admission essays; online
courses and certificates; teaching children to read; study techniques and spaced repetition; homeschooling;
scholarships for students; maths lessons for grade eight; classroom teaching methods; learning to code at school
family-and-relationships | Baby; Wedding; Parenting |
foldable baby stroller; newborn gift basket; wedding guest book; baby monitor with camera; parenting guide for the
toddler years; diaper bag backpack; conversation cards for couples; family memory scrapbook |
getting a newborn to sleep; raising teenagers; planning a small wedding; communication in a marriage; becoming a
grandparent; single parenting; dating after divorce; sibling rivalry; toddler tantrums; adopting a child; staying
friends for life; long distance relationships
fine-art | Painting; Sculpture; Art Prints |
oil paint set, 24 colors; stretched canvas 60 x 80 cm; watercolor brushes, sable hair; framed Monet art print;
modeling clay for sculptors; wooden studio easel; charcoal drawing set; exhibition catalogue of modern art |
Rembrandt's use of light; watercolor landscapes; the Venice Biennale; sculpting in marble; abstract expressionism; a
visit to the Louvre; life drawing classes; Frida Kahlo's self-portraits; contemporary galleries in Berlin; ballet and
opera staging; printmaking with linocut; the restoration of a fresco
food-and-drink | Coffee; Spices; Baking |
single-origin coffee beans 1 kg; extra virgin olive oil; sourdough starter kit; organic green tea; dark chocolate bar
85 percent; smoked paprika and spice set; aged cheddar cheese; bottle of Rioja red wine |
baking sourdough bread; authentic ramen broth; Italian pasta recipes; wine tasting in Burgundy; slow-cooked barbecue
ribs; vegan dinner ideas; the perfect espresso; street food in Bangkok; homemade kimchi; cocktails without alcohol;
cheese making; a three-star restaurant menu
healthy-living | Vitamins; Yoga; Wellness |
non-slip yoga mat; vitamin D3 capsules; foam roller for sore muscles; meditation cushion; smart body scale; herbal
sleep tea; resistance band set for home workouts; whey protein powder |
morning yoga for back pain; better sleep habits; mindfulness meditation; intermittent fasting; losing weight slowly; a
balanced diet with more vegetables; breathing exercises against stress; stretching at the desk; cutting down sugar;
home workouts without equipment; walking ten thousand steps; a healthy gut
hobbies-and-interests | Crafts; Model Making; Collecting |
merino yarn for knitting; model railway starter set; quilting fabric bundle; wood carving knives; stamp collecting
album; origami paper, 200 sheets; birdwatching binoculars; strategy board game for four players |
knitting a first sweater; building a model railway; birdwatching at dawn; collecting rare coins; origami folding;
woodworking with hand tools; candle making; tabletop board games; learning calligraphy; film photography as a hobby;
scrapbooking; chess openings
home-and-garden | Furniture; Kitchenware; Gardening |
cordless hedge trimmer; oak dining table; stainless steel cookware set; raised garden bed; memory foam mattress; LED
ceiling lamp; tomato seeds, heirloom mix; robot vacuum cleaner |
renovating a small bathroom; growing tomatoes on a balcony; pruning roses; decluttering the kitchen; laying a wooden
floor; composting at home; interior design on a budget; lawn care in spring; painting a living room; indoor plants for
dark corners; building a garden shed; Scandinavian furniture
movies | Blu-ray; Film Posters; Home Cinema |
director's cut on Blu-ray; Hitchcock film collection; movie poster, framed; home cinema projector; film noir DVD box;
screenplay of a famous movie; popcorn machine for movie nights; Oscar winners DVD set |
the Cannes film festival; Christopher Nolan's movies; horror movies of the eighties; the Oscars for best picture; how
stunts are filmed; Studio Ghibli animated films; a film critic's favorites; Hollywood box office hits; silent cinema;
the new superhero movie; Kubrick's camera work; movie trailers
music-and-audio | Vinyl; Instruments; Headphones |
acoustic guitar, dreadnought; vinyl record of a jazz classic; noise-cancelling headphones; digital piano with 88 keys;
studio microphone; drumsticks, hickory; turntable with preamp; concert ticket voucher |
jazz improvisation; learning guitar chords; hip hop production; a live concert in the park; Beethoven's symphonies;
mixing vocals in a home studio; vinyl collecting; the best albums of the year; podcast recording; techno festivals;
singing lessons; piano practice
personal-finance | Budgeting; Savings; Tax |
household budget planner; guide to index funds; coin bank for savings; tax return software; retirement planning
workbook; cash envelope wallet; book on paying off debt; insurance folder organizer |
saving for retirement; paying off credit card debt; index funds and dividends; a monthly household budget; filing a
tax return; building an emergency fund; mortgage repayments; health insurance costs; frugal living; comparing savings
accounts; my stock portfolio; credit scores
pets | Dog Food; Cat Supplies; Aquariums |
grain-free dog food 12 kg; cat scratching post; aquarium filter; dog leash, reflective; hamster cage with wheel; cat
litter, clumping; parrot perch and toys; puppy training pads |
training a puppy; why cats purr; keeping tropical fish; adopting a shelter dog; a rabbit's diet; grooming a poodle;
teaching a parrot to talk; kittens meeting an older cat; vet visits; agility courses for dogs; caring for a bearded
dragon; hamsters at night
pop-culture | Fan Merchandise; Celebrity Magazines; Comics |
celebrity gossip magazine subscription; collectible figure of a superhero; K-pop light stick; fan T-shirt of a boy
band; comic convention pass; trivia game on pop icons; signed photo of a film star; royal family souvenir mug |
celebrity weddings; the Met Gala looks; viral memes; royal family news; influencer scandals; fan conventions and
cosplay; reality stars; the Eurovision contest; K-pop idols; celebrity breakups; red carpet interviews; nineties
nostalgia
real-estate | Moving; Letting; Surveying |
moving boxes, set of 20; landlord's handbook; For Sale yard sign; rental contract forms; laser distance meter for
floor plans; key safe for holiday lets; house buying checklist; property valuation guide |
buying a first apartment; house prices in the suburbs; renting out a flat; mortgage rates and home buyers; touring a
penthouse; tiny houses for sale; flipping houses; negotiating with an estate agent; office buildings standing empty; a
landlord's duties; moving to the countryside; home inspections
shopping | Coupons; Gift Cards; Outlet |
gift card, 50 dollars; coupon booklet; foldable shopping trolley; outlet surprise box; gift wrapping set; loyalty card
holder; reusable shopping bags; subscription box of bargains |
Black Friday deals; finding coupon codes; an outlet mall haul; flea market bargains; unboxing online orders; price
comparison sites; second-hand shopping apps; Christmas gift shopping; returning online purchases; loyalty programs;
supermarket discounts; a grocery haul
sports | Running; Football; Cycling |
trail running shoes with carbon plate; match football size 5; road bike helmet; tennis racket 300 g; swimming goggles,
anti-fog; climbing harness; basketball hoop for the garage; ski poles, aluminum |
the Champions League final; marathon training plans; the Tour de France; basketball playoffs; a tennis serve; Olympic
swimming; climbing in the Dolomites; the Super Bowl; ski racing; Formula 1 races; women's football; triathlon
preparation
style-and-fashion | Dresses; Skin Care; Sneakers |
linen summer dress; hyaluronic acid face serum; white leather sneakers; matte lipstick, red; cashmere scarf; slim fit
denim jeans; silver hoop earrings; hair straightener, ceramic |
capsule wardrobes; Paris fashion week; everyday makeup; vintage denim; a skin care routine; street style in Tokyo;
styling curly hair; sneaker releases; sustainable fashion; nail art; menswear tailoring; minimalist jewelry
technology-and-computing | Laptops; Smart Home; Components |
mechanical keyboard with USB-C; laptop with 32 GB memory; NVMe solid state drive 2 TB; wireless router, Wi-Fi 7;
graphics card 16 GB; smart home hub; Raspberry Pi starter kit; 27-inch 4K monitor |
large language models; programming in Rust; building a PC; the new smartphone; home servers on Linux; cybersecurity
and passwords; cloud computing costs; open source software; chip manufacturing; smart home automation; machine
learning for images; web browsers
television | Box Sets; TV Sets; Streaming |
complete TV series box set; streaming stick for the television; 55-inch OLED TV; sitcom fan mug; wall mount for flat
TVs; season pass for a drama series; TV guide subscription; remote control, universal |
the season finale of a drama series; late night talk shows; the best sitcoms; nature documentaries on TV; Nordic noir
series; a cooking show final; binge watching a box set; soap operas; quiz shows; streaming series this month; TV news
anchors; reality dating shows
travel | Luggage; Travel Guides; Camping |
cabin suitcase with wheels; travel guide to Japan; two-person trekking tent; neck pillow for long flights; universal
travel adapter; packing cubes; waterproof hiking backpack; world map to scratch off |
backpacking through Vietnam; cheap flights to Lisbon; the Trans-Siberian railway; hidden beaches in Greece; a weekend
in Rome; safari in Kenya; traveling with carry-on only; hiking in Patagonia; cruise ships; hostels in Europe; road
trips in Iceland; an Airbnb in Kyoto
video-gaming | Consoles; PC Games; Controllers |
wireless game controller; role-playing game for consoles; gaming headset with microphone; racing wheel and pedals;
handheld game console; gaming chair; first-person shooter, PC download; retro arcade machine |
an Elden Ring boss fight; Minecraft redstone builds; e-sports finals; speedrunning Mario; indie games of the year; a
Zelda playthrough; game engines; ranked matches in League of Legends; retro consoles; virtual reality games; farming
simulators; loot boxes
"""


def _parsed(words: str) -> dict[str, Material]:
    found = {}
    for block in re.split(r"\n(?=[a-z-]+ \| \w)", words.strip()):
        slug, *lists = (" ".join(part.split()) for part in block.split("|"))
        shelves, products, subjects = (tuple(entry.strip() for entry in part.split(";")) for part in lists)
        found[slug] = Material(shelves, products, subjects)
    return found


MATERIAL: Final = _parsed(_WORDS)
"""Material of the shipped taxonomy, by slug."""


def material_of(label: Label) -> Material:
    """Return what is said of a label; of one that nobody wrote for, its own name, aliases and description."""
    known = MATERIAL.get(label.slug)
    if known is not None:
        return known
    words = tuple(dict.fromkeys((label.name, *label.aliases, *filter(None, [label.description]))))
    return Material((label.name,), tuple(f"{word} starter kit" for word in words), words)


class Item(NamedTuple):
    """Something on a platform, and the label it is about."""

    label_id: str
    platform: str
    object: Object


def make_catalogue(taxonomy: Taxonomy, rng: Random, *, items_per_label: int) -> dict[tuple[str, str], list[Item]]:
    """Return up to `items_per_label` items, each with a text of its own, by (platform, label id)."""
    found = {}
    for label in taxonomy.labels:
        material = material_of(label)
        for platform in PLATFORMS:
            words = material.products if platform == "shop" else material.subjects
            texts = list(dict.fromkeys(_filled(template, word) for template in _TEMPLATES[platform] for word in words))
            rng.shuffle(texts)
            found[platform, label.id] = [
                Item(label.id, platform, _object(rng, platform, label, f"{label.slug}-{number}", text))
                for number, text in enumerate(texts[:items_per_label], 1)
            ]
    return found


def _filled(template: str, word: str) -> str:
    text = template.format(word)
    return text[0].upper() + text[1:]


def _object(rng: Random, platform: str, label: Label, name: str, text: str) -> Object:
    """Dress a text as its platform would: a shop with shelves, a video sometimes with IAB ids, a post with little."""
    if platform == "shop":
        shelf = rng.choice(material_of(label).shelves)
        return Object(f"p-{name}", "product", title=text, categories=(f"{label.name} > {shelf}",))
    if platform == "video":
        return Object(f"v-{name}", "video", title=text, iab=label.content_ids if rng.random() < _IAB_SHARE else ())
    tags: tuple[str, ...] = ()
    if rng.random() < _TAGGED_SHARE:
        words = re.findall(r"[A-Za-z]+", rng.choice(material_of(label).subjects))
        tags = tuple(word.lower() for word in words if len(word) >= _SHORTEST_TAG)[:2]
    return Object(f"s-{name}", "post", text=text, tags=tags)
