"""Short captions in English and in other languages: how many are told apart."""

import pytest
from cacophony.data.curate.language import has_foreign_words

# Half of each was seen while the word lists were written, half was written before and looked at afterwards.
ENGLISH = """
A dog barks in the distance.
Rain falls on a tin roof.
Wind blows through the trees.
Footsteps on gravel.
A car passes by.
Birds chirping.
A kettle boils and clicks off.
Thunder rumbles and rain pours.
Kick drum loop.
Glockenspiel arpeggio with reverb.
Bandoneon tango phrase.
Synth pad, dark ambient drone.
Church bells ring.
Waves crash on a rocky shore.
A man speaks while a crowd murmurs.
Door creaks.
A bass guitar slides down.
Sizzling bacon in a pan.
Metallic clang followed by an echo.
Cicadas buzz loudly at night.
Didgeridoo drone.
Tabla rhythm, slow tempo.
Vinyl crackle and hiss.
A train passes over a level crossing.
Sci-fi laser zap.
Glass shatters.
Keyboard typing.
A baby laughs.
Espresso machine grinding and steaming.
A cappella choir sings a chord.
Gamelan gong.
Marimba melody in C minor at 120 bpm.
Water drips in a cave.
A motorcycle revs.
Snare roll.
Crow caws.
Piano arpeggio.
A helicopter hovers overhead.
Radio static.
Pigeons coo and flap their wings.
A steam locomotive whistles.
Ukulele strum.
Zipper.
Hydraulic press hisses and thuds.
Children play in a playground.
A cat purrs.
Sub bass rumble.
Bongo and conga groove.
Balloon pops.
Coins jingle in a pocket.
""".strip().splitlines()
ENGLISH_UNSEEN = """
A door slams shut in a large hall.
Two people converse softly on a bus.
Someone chops vegetables on a wooden board.
A siren wails and fades away.
Die is cast and coins fall on the table.
La la la, a woman sings.
Crickets chirp on a warm night.
An accordion plays a French musette.
A mariachi band plays in the café.
Laughter and applause from an audience.
Ambient pad with slow attack.
A bird tweets, then a fox screams.
Heavy machinery rumbles at a building site.
Paper is crumpled and torn.
A fan hums with a 50 Hz buzz.
Rustling leaves underfoot.
Techno beat at 130 BPM with claps.
The sea breaks against a pier.
A bottle is opened and beer is poured.
A pan flute plays over wind.
Low drone with no rhythm.
Tap water runs into a sink.
Horse hooves on cobblestones.
A man says hello and coughs.
Squeaky toy.
Old dial-up modem.
Bell tolls.
A jazz trio plays live in a pub.
Typewriter keys and carriage return.
A bus en route brakes with a hiss.
An alarm beeps every second.
Fire crackles.
Sheep bleat in a pen.
A dentist's drill whines.
Fingers snap.
Ice cubes clink in a glass.
A sitar and tabla duet.
Chainsaw cuts wood.
A Geiger counter ticks.
Frogs croak in a pond.
Fireworks explode and a crowd cheers.
Whistle, then a ball is kicked.
Guttural growl of a monster.
Footsteps go up the stairs.
Wind chimes tinkle.
A lift door opens with a ding.
Rhythmic clanking of a loom.
Static and tuning of a short-wave radio.
A pneumatic drill breaks concrete.
Ducks quack and splash.
""".strip().splitlines()
FOREIGN = """
Un perro ladra a lo lejos.
Lluvia sobre el tejado.
Pasos sobre grava.
Pájaros cantando en el parque.
Ambiente de calle con coches.
Le chien aboie.
Pluie sur un toit en tôle.
Des oiseaux chantent dans la forêt.
Bruit de pas dans la neige.
Porte qui grince.
Ein Hund bellt in der Ferne.
Regen auf dem Dach.
Schritte auf Kies.
Vögel zwitschern im Wald.
Kirchenglocken läuten.
Un cane abbaia in lontananza.
Pioggia sul tetto.
Campane della chiesa.
Passi sulla ghiaia.
Acqua che scorre.
Chuva no telhado.
Um cão ladra ao longe.
Passos na areia.
Som de água corrente.
Een hond blaft.
Regen op het dak.
Voetstappen op grind.
Vogels fluiten in het bos.
Pies szczeka w oddali.
Deszcz pada na dach.
Odgłosy kroków na śniegu.
Дождь стучит по крыше.
Собака лает.
Шаги по снегу.
雨が屋根に降る。
犬が吠える。
下雨的声音。
狗在叫。
빗소리가 들린다.
Köpek havlıyor.
Çatıda yağmur sesi.
Hund skäller i fjärran.
Regn på taket.
Fågelsång i skogen.
Koira haukkuu.
Grabación de campo en el mercado.
Enregistrement de la mer avec des mouettes.
Aufnahme eines vorbeifahrenden Zuges.
A dog barks mientras la lluvia cae sobre el tejado.
Bells ringing, cloches de l'église du village.
""".strip().splitlines()
FOREIGN_UNSEEN = """
El viento sopla fuerte en la montaña.
Gente hablando en un bar.
Una puerta se cierra.
Campanas de iglesia a lo lejos.
Voz de mujer cantando.
Le vent souffle dans les arbres.
Une voiture passe sur la route.
Cloches et voix dans la rue.
Moteur de bateau.
Les enfants jouent au parc.
Der Wind weht durch die Bäume.
Ein Auto fährt vorbei.
Stimmen in einem Café.
Wasser tropft in einer Höhle.
Zug fährt in den Bahnhof ein.
Il vento soffia tra gli alberi.
Una porta si chiude.
Voci di bambini al parco.
Treno in stazione.
Il gatto miagola.
O vento sopra nas árvores.
Crianças a brincar no parque.
Um carro passa na estrada.
Gato miando.
De wind waait door de bomen.
Een auto rijdt voorbij.
Kinderen spelen op straat.
Trein op het station.
Wiatr wieje w drzewach.
Samochód przejeżdża ulicą.
Dzwony kościelne w oddali.
Ветер дует в деревьях.
Машина проезжает мимо.
Колокола звонят.
風が木々を吹き抜ける。
车驶过。
바람 소리.
صوت المطر
ήχος βροχής
Rüzgar ağaçlarda esiyor.
Kapı gıcırdıyor.
Vinden blåser i träden.
En bil kör förbi.
Børn leger i parken.
Tuuli puhaltaa puissa.
Suara hujan di atap.
Vítr fouká ve stromech.
Szél fúj a fák között.
Rain falling, pluie sur le toit.
Footsteps, pasos en la arena.
""".strip().splitlines()


@pytest.mark.parametrize("texts", [ENGLISH, ENGLISH_UNSEEN])
def test_english_captions_are_left_alone(texts: list[str]) -> None:
    assert [text for text in texts if has_foreign_words(text)] == []


@pytest.mark.parametrize(("texts", "at_least"), [(FOREIGN, 43), (FOREIGN_UNSEEN, 39)])
def test_most_captions_of_other_languages_are_found(texts: list[str], at_least: int) -> None:
    missed = [text for text in texts if not has_foreign_words(text)]

    assert len(texts) == 50
    assert len(missed) <= 50 - at_least, missed


@pytest.mark.parametrize("text", ["犬", "Ω", "A 5 µs click", "Đ", "", "L'orage gronde à minuit", "Überraschung"])
def test_letters_of_other_scripts(text: str) -> None:
    assert has_foreign_words(text) == (text in ("犬", "Überraschung"))
